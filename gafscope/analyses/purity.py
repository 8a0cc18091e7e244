"""What a rule accepts, where true labels are known: the share of flipped samples on each side.

Shape legend: k rows measured, m of them in a macrobatch, d macrobatches drawn.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gafscope.aggregation import RowRule, Weighting, rows_needed
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.metrics import Estimate
from gafscope.metrics.resampling import Resampled, estimate, without_interval

FIRSTS = ("any", "clean", "corrupted")
"""Which macrobatches a line of the table is about, by their first row."""


def purity(
    gramian: Gramian,
    flipped: Float[Tensor, " k"],
    rule: Weighting,
    *,
    microbatches: int = 2,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Let a rule decide on random macrobatches of measured rows, and count flipped samples.

    The first row is called corrupted when its share of flipped samples is above that of all rows:
    with single samples, when it is flipped itself. Intervals are the delete-one jackknife's over
    the rows measured.

    Args:
        gramian: Inner products of k rows, microbatches or samples.
        flipped: (k,), the share of flipped samples in each row; 0 or 1 for samples.
        rule: The rule; one that remembers learns from macrobatch to macrobatch.
        microbatches: m, rows of a macrobatch.
        draws: d, about how many macrobatches to draw; each pass uses every row once.
        seed: Draws them.

    Returns:
        A line for each of `FIRSTS`: `first`, `macrobatches`, `stepped` and `accepted` (shares of
        macrobatches and of rows), and `flipped_accepted`, `flipped_rejected`, `flipped_all`, the
        share of flipped samples among the rows accepted, rejected and both; with `_low` and
        `_high`, all but the count. NaN where there is no such row.

    Raises:
        UserError: If there are fewer rows than a macrobatch takes, not one share a row, or the
            rule needs the gradients themselves.

    Example:
        >>> from gafscope.aggregation import GAF
        >>> rows = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0], [-1.0, 0.0]]).double()
        >>> table = purity(Gramian(rows @ rows.T), torch.tensor([0.0, 0, 0, 1]), GAF(0.5))
        >>> table.loc[0, ["flipped_accepted", "flipped_all"]].tolist()
        [0.0, 0.25]
    """
    if isinstance(rule, RowRule):
        raise rows_needed(rule, "to measure purity, where only inner products are kept")
    k = gramian.k
    if not 2 <= microbatches <= k or draws < 1 or tuple(flipped.shape) != (k,):
        raise UserError(
            "purity draws macrobatches of at least 2 of the rows measured and takes one share of "
            f"flipped samples a row, but there are {k} rows, microbatches={microbatches}, "
            f"draws={draws} and {tuple(flipped.shape)} shares; use more data or smaller "
            "macrobatches."
        )
    matrix, shares = gramian.matrix.cpu(), flipped.double().cpu()
    groups = _draw(k, microbatches, draws, torch.Generator().manual_seed(seed))
    accepted = torch.stack([_accepted(rule, matrix, group) for group in groups])
    corrupted = shares[groups[:, 0]] > shares.mean()
    kinds = (torch.ones_like(corrupted), ~corrupted, corrupted)
    return pd.DataFrame(
        _line(first, groups[kind], accepted[kind], shares)
        for first, kind in zip(FIRSTS, kinds, strict=True)
    )


def _draw(k: int, m: int, draws: int, generator: torch.Generator) -> Tensor:
    """Cut shuffled rows into macrobatches, (d, m), until there are enough."""
    each = k // m
    passes = -(-draws // each)
    orders = [torch.randperm(k, generator=generator)[: each * m] for _ in range(passes)]
    return torch.cat(orders).reshape(-1, m)


def _accepted(rule: Weighting, matrix: Float64[Tensor, "k k"], group: Tensor) -> Tensor:
    decision = rule(Gramian(matrix[group][:, group]))
    return decision.accepted & decision.step


def _line(first: str, groups: Tensor, accepted: Tensor, shares: Tensor) -> dict[str, Any]:
    kept, left = accepted.double(), (~accepted).double()
    flipped = shares[groups]
    ones = torch.ones_like(kept)
    counts = {
        "stepped": (accepted.any(1).double(), ones[:, 0]),
        "accepted": (kept.sum(1), ones.sum(1)),
        "flipped_accepted": ((kept * flipped).sum(1), kept.sum(1)),
        "flipped_rejected": ((left * flipped).sum(1), left.sum(1)),
        "flipped_all": (flipped.sum(1), ones.sum(1)),
    }
    line: dict[str, Any] = {"first": first, "macrobatches": len(groups)}
    for name, (parts, wholes) in counts.items():
        found = _ratio(parts, wholes, groups, len(shares))
        line |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return line


def _ratio(parts: Tensor, wholes: Tensor, groups: Tensor, k: int) -> Estimate:
    """Estimate sum(parts) / sum(wholes) over macrobatches, with the jackknife over rows."""
    if not len(parts) or float(wholes.sum()) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    with_row = torch.zeros(2, k, dtype=torch.float64)
    for total, values in zip(with_row, (parts, wholes), strict=True):
        total.index_add_(0, groups.flatten(), values.repeat_interleave(groups.shape[1]))
    without = (parts.sum() - with_row[0]) / (wholes.sum() - with_row[1])
    value = parts.sum() / wholes.sum()
    if float(value) in (0.0, 1.0):
        return without_interval(float(value), k, "no interval: all of them are alike")
    return estimate(Resampled(value, without), "", bounds=(0.0, 1.0))
