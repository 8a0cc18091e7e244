from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gafscope.analyses.curve_check import SIZES, STAGES, check_curve, measured_cosine


def test_measuring_on_the_gramian_is_measuring_on_the_gradients():
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).double() + 0.3
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    a, b = rows[order[:20]].mean(0), rows[order[20:]].mean(0)
    expected = float(a @ b / a.norm() / b.norm())
    generator = torch.Generator().manual_seed(1)
    assert measured_cosine(rows @ rows.T, 20, 1, generator) == pytest.approx(expected)


def test_prediction_meets_measurement_early_in_training():
    table = check_curve(0, stages=(100,), sizes=(5, 50, 400), pairs=60)
    assert table["u"].tolist() == [5, 50, 400]
    assert (table["refused"] == "").all()
    assert table["error"].abs().max() < 0.06
    assert table["measured"].iloc[2] > 0.3
    np.testing.assert_allclose(table["error"], table["predicted"] - table["measured"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_prediction_meets_measurement_wherever_it_does_not_refuse(seed):
    table = check_curve(seed)
    assert sorted(set(table["step"])) == list(STAGES)
    assert sorted(set(table["u"])) == list(SIZES)
    kept = table[table["refused"] == ""]
    assert len(kept) > len(table) / 2
    assert kept["error"].abs().max() < 0.06
    assert all(math.isnan(value) for value in table[table["refused"] != ""]["predicted"])
