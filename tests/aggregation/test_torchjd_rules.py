"""TorchJD's objects as rules, against plain calls of TorchJD."""

from __future__ import annotations

import sys

import pytest
import torch

from gafscope.aggregation import RowRule, Weighting, aggregate, from_torchjd, per_sample_step
from gafscope.errors import UserError
from gafscope.gradients import GradientRows

SHAPES = {"a": (2, 3), "b": (), "c": (4,)}


def rows_of(k: int = 6, seed: int = 0) -> GradientRows:
    random = torch.Generator().manual_seed(seed)
    return GradientRows(
        {
            name: torch.randn(k, *shape, generator=random, dtype=torch.float64)
            for name, shape in SHAPES.items()
        }
    )


def flat(update) -> torch.Tensor:
    return torch.cat([update[name].flatten() for name in SHAPES])


def make(name: str, *arguments, **options):
    module = pytest.importorskip("torchjd.aggregation")
    # Some need a solver that is a package of its own.
    try:
        thing = getattr(module, name)(*arguments, **options)
        thing(torch.eye(5, dtype=torch.float64))
    except ImportError as error:
        pytest.skip(str(error))
    return thing


BY_GRAMIAN = [
    ("UPGrad", (), {}),
    ("MGDA", (), {}),
    ("PCGrad", (), {}),
    ("CAGrad", (), {"c": 0.5}),
    ("Krum", (1, 2), {}),
    ("DualProj", (), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), BY_GRAMIAN)
def test_gramian_based_objects_are_weightings(name, arguments, options):
    whole = make(name, *arguments, **options)
    part = make(name + "Weighting", *arguments, **options)
    for seed in range(3):
        rows = rows_of(seed=seed)
        torch.manual_seed(seed)
        expected = whole(rows.flat())
        for thing in (whole, part):
            rule = from_torchjd(thing)
            assert isinstance(rule, Weighting)
            assert not isinstance(rule, RowRule)
            torch.manual_seed(seed)
            decision = rule(rows.gramian())
            assert decision.step
            assert torch.equal(decision.accepted, decision.weights != 0)
            found = flat(rows.combine(decision.weights))
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("Mean", ()), ("Sum", ()), ("TrimmedMean", (2,)), ("GradDrop", ()), ("ConFIG", ())],
)
def test_other_objects_are_given_the_rows(name, arguments):
    thing = make(name, *arguments)
    rule = from_torchjd(thing)
    assert isinstance(rule, RowRule)
    assert not isinstance(rule, Weighting)
    rows = rows_of()
    torch.manual_seed(1)
    expected = thing(rows.flat())
    torch.manual_seed(1)
    result = aggregate(rule, rows, rows.gramian())
    torch.testing.assert_close(flat(result.update), expected)
    assert result.update["a"].shape == (2, 3)
    assert result.decision.accepted.all()


def test_weights_of_the_rows_pass_through_as_they_are():
    rule = from_torchjd(make("SumWeighting"))
    rows = rows_of(k=3)
    result = aggregate(rule, rows, rows.gramian())
    assert result.decision.weights.tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(flat(result.update), rows.flat().sum(0))


@pytest.mark.parametrize("name", ["UPGrad", "TrimmedMean", "Mean"])
def test_rows_that_are_not_finite_are_not_shown(name):
    thing = make(name, *((1,) if name == "TrimmedMean" else ()))
    rows = rows_of(k=5)
    rows.named["c"][1, 2] = float("nan")
    result = aggregate(from_torchjd(thing), rows, rows.gramian())
    expected = thing(rows.flat()[[0, 2, 3, 4]])
    torch.testing.assert_close(flat(result.update), expected, rtol=1e-6, atol=1e-8)
    assert result.decision.finite.tolist() == [True, False, True, True, True]
    rows.named["c"][:] = float("nan")
    assert not aggregate(from_torchjd(thing), rows, rows.gramian()).decision.step


def test_too_few_rows():
    rule = from_torchjd(make("Krum", 1, 1))
    with pytest.raises(UserError, match=r"TorchJD's Krum.* refuses k = 3"):
        rule(rows_of(k=3).gramian())
    rows = rows_of(k=5)
    for row in (0, 3):
        rows.named["a"][row] = float("inf")
    assert not rule(rows.gramian()).step


def test_a_wrapper_takes_what_the_weighting_in_it_takes():
    smooth = pytest.importorskip("torchjd.aggregation").CRMOGMWeighting
    assert isinstance(from_torchjd(smooth(make("UPGradWeighting"))), Weighting)
    assert isinstance(from_torchjd(smooth(make("MeanWeighting"))), RowRule)


def test_rules_that_need_rows_are_refused_where_there_are_none():
    rule = from_torchjd(make("TrimmedMean", 1))
    model = torch.nn.Linear(2, 1)
    with pytest.raises(UserError, match="needs the gradients themselves and cannot be used per"):
        per_sample_step(model, lambda m, b: m(b).squeeze(1), torch.ones(4, 2), rule)


def test_they_show_what_they_are():
    assert repr(from_torchjd(make("Krum", 1, 2))) == (
        "TorchJDWeighting(name='Krum(n_byzantine=1, n_selected=2)')"
    )


def test_other_objects_are_refused():
    pytest.importorskip("torchjd")
    with pytest.raises(UserError, match=r"takes an object of torchjd\.aggregation"):
        from_torchjd("UPGrad")


def test_without_torchjd_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match=r"pip install 'gafscope\[torchjd\]'"):
        from_torchjd(object())
