"""Streaming, gradient by gradient, must decide as the whole Gramian does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_rows import cases, flat, gradient_rows, gramian

from gafscope.aggregation import GAF, Decision, HalvingGAF, Mean, Sequential, Visitor


def stream(rule: Sequential, rows: np.ndarray) -> tuple[Decision, np.ndarray, Visitor]:
    """Visit the rows as a training loop does, with one running vector."""
    visitor = Visitor(rule.fold, len(rows))
    running = np.zeros(rows.shape[1])
    for g in rows:
        started = running.any()
        # With nothing in the running vector the product may be anything.
        factors = visitor.visit(float(g @ g), float(g @ running) if started else math.nan)
        if factors is not None:
            keep, add = factors
            running = keep * running + add * g
    return visitor.decision(), running / visitor.divisor, visitor


@pytest.mark.parametrize("make", [GAF, HalvingGAF, lambda tau: Mean()])
def test_streaming_decides_and_updates_as_the_gramian_does(make):
    for rows, tau, kind in cases(450):
        rule = make(tau)
        with np.errstate(invalid="ignore"):
            streamed, update, visitor = stream(rule, rows)
        whole = rule(gramian(rows))
        assert torch.equal(streamed.accepted, whole.accepted), kind
        assert torch.equal(streamed.weights, whole.weights)
        assert torch.equal(streamed.finite, whole.finite)
        assert streamed.step == whole.step
        torch.testing.assert_close(
            streamed.distances, whole.distances, rtol=0, atol=1e-9, equal_nan=True
        )
        if whole.step:
            combined = flat(gradient_rows(rows).combine(whole.weights))
            scale = np.abs(rows[whole.accepted.numpy()]).max()
            np.testing.assert_allclose(update, combined, rtol=1e-12, atol=1e-13 * scale)
            size = np.linalg.norm(update)
            assert visitor.norm == pytest.approx(size, rel=1e-9, abs=1e-9 * scale)


def test_the_factors_of_each_visit():
    halving = Visitor(HalvingGAF(1.0).fold, 4)
    assert halving.visit(1.0, 0.0) == (0.0, 1.0)
    assert halving.visit(1.0, -1.0) is None
    assert halving.visit(math.nan, math.nan) is None
    assert halving.visit(1.0, 1.0) == (0.5, 0.5)
    gaf = Visitor(GAF(1.0).fold, 2)
    assert gaf.visit(1.0, 0.0) == (0.0, 1.0)
    assert gaf.visit(1.0, 1.0) == (1.0, 1.0)
    assert gaf.divisor == 2
    assert gaf.norm == 1.0


def test_before_and_without_any_acceptance():
    visitor = Visitor(GAF().fold, 2)
    assert visitor.divisor == 1
    assert visitor.norm == 0
    visitor.visit(math.inf, math.nan)
    visitor.visit(0.0, 0.0)
    decision = visitor.decision()
    assert not decision.step
    assert decision.finite.tolist() == [False, True]
