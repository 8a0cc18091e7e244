"""The decisions of T trials on their Gramians, at once where their rules allow it.

Sequential rules are all in their `Fold`: one pass over the k visits serves every trial that has
one. It is `gafscope.aggregation.sequential.Visitor` with an array in the place of each number. Any
other rule decides by itself, trial by trial.

Shape legend: T trials, k microbatches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.aggregation import Decision, Fold, Observing, Rule
from gafscope.gradients import Gramian

# As in the visitor.
_CANCELLED = 1e-13


@final
@dataclass(frozen=True, eq=False)
class Decisions:
    """What T rules decided.

    Attributes:
        each: The decision of each.
        norms: Norms of the combined gradients, NaN where there is no step.
        mean_distances: Mean cosine distance of the pairs, as a run records it.
    """

    each: list[Decision]
    norms: list[float]
    mean_distances: list[float]


def decide(
    rules: Sequence[Any], matrices: Float64[Tensor, "T k k"], layers: list[dict[str, Tensor]] | None
) -> Decisions:
    """Let each rule decide on its Gramian.

    Args:
        rules: T weightings.
        matrices: Their Gramians, on the CPU; NaN where a gradient is not finite.
        layers: The Gramians by layer, where they were measured.

    Returns:
        The decisions.
    """
    products_Tkk = matrices.numpy()
    folds = [fold_of(rule) for rule in rules]
    plain = [t for t, fold in enumerate(folds) if fold is not None]
    each: list[Decision | None] = [None] * len(rules)
    if plain:
        known = [fold for fold in folds if fold is not None]
        for t, decision in zip(plain, _visit(known, products_Tkk[plain]), strict=True):
            each[t] = decision
    for t, rule in enumerate(rules):
        if each[t] is None:
            each[t] = rule(Gramian(matrices[t], layers[t] if layers else {}, engine="loop"))
    decisions = [decision for decision in each if decision is not None]
    weights_Tk = np.stack([decision.weights.numpy() for decision in decisions])
    squares = np.einsum("ti,tij,tj->t", weights_Tk, np.nan_to_num(products_Tkk), weights_Tk)
    norms = np.sqrt(np.maximum(squares, 0.0)).tolist()
    return Decisions(
        decisions,
        [n if d.step else math.nan for n, d in zip(norms, decisions, strict=True)],
        mean_distances(products_Tkk),
    )


def fold_of(rule: Rule) -> Fold | None:
    """Give what a rule does where that is all there is to it.

    Args:
        rule: Any weighting.
    """
    return None if _observes(type(rule)) else getattr(rule, "fold", None)


@functools.cache
def _observes(kind: type[Any]) -> bool:
    """Protocols are slow to check."""
    return issubclass(kind, Observing)


def mean_distances(products_Tkk: np.ndarray) -> list[float]:
    """Average the cosine distances of the pairs, as `mean_pairwise_distance` does for one.

    Args:
        products_Tkk: T Gramians.

    Returns:
        Numbers in [0, 2], NaN where fewer than two gradients are finite.
    """
    rows, columns = np.triu_indices(products_Tkk.shape[1], 1)
    norms_Tk = np.sqrt(np.einsum("tii->ti", products_Tkk))
    left, right = norms_Tk[:, rows], norms_Tk[:, columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.clip(1 - products_Tkk[:, rows, columns] / (left * right), 0.0, 2.0)
    distances = np.where((left == 0) | (right == 0), 1.0, distances)
    distances[~(np.isfinite(left) & np.isfinite(right))] = math.nan
    known = ~np.isnan(distances)
    counts = known.sum(1)
    sums = np.where(known, distances, 0.0).sum(1)
    return [s / n if n else math.nan for s, n in zip(sums.tolist(), counts.tolist(), strict=True)]


def _visit(folds: Sequence[Fold], products_Tkk: np.ndarray) -> list[Decision]:
    """Visit the k micro-gradients of each trial in order."""
    trials, k = products_Tkk.shape[:2]
    tau, keep, add = (np.array([getattr(f, n) for f in folds]) for n in ("tau", "keep", "add"))
    squares_Tk = np.einsum("tii->ti", products_Tkk)
    finite_Tk = np.isfinite(squares_Tk)
    products_Tkk = np.where(finite_Tk[:, :, None] & finite_Tk[:, None, :], products_Tkk, 0.0)
    square, into, dots_Tk = np.zeros(trials), np.zeros(trials), np.zeros((trials, k))
    started, count = np.zeros(trials, bool), np.zeros(trials, int)
    weights_Tk, accepted_Tk = np.zeros((trials, k)), np.zeros((trials, k), bool)
    distances_Tk = np.full((trials, k), math.nan)
    for i in range(k):
        own, dot = np.where(finite_Tk[:, i], squares_Tk[:, i], 0.0), dots_Tk[:, i]
        compared = finite_Tk[:, i] & (started | (own == 0))
        running = np.where(square <= _CANCELLED * into, 0.0, square)
        with np.errstate(all="ignore"):
            distance = np.clip(1 - dot / (np.sqrt(own) * np.sqrt(running)), 0.0, 2.0)
        distance = np.where((own <= 0) | (running <= 0), 1.0, distance)
        distances_Tk[compared, i] = distance[compared]
        taken = finite_Tk[:, i] & (~compared | (distance <= tau))
        kept, added = np.where(count == 0, 0.0, keep), np.where(count == 0, 1.0, add)
        dot = np.where(started, dot, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            grown = kept * kept * square + 2 * kept * added * dot + added * added * own
            square = np.where(taken, grown, square)
            into = np.where(taken, kept * kept * into + added * added * own, into)
            moved = kept[:, None] * dots_Tk + added[:, None] * products_Tkk[:, i]
            dots_Tk = np.where(taken[:, None], moved, dots_Tk)
        weights_Tk = np.where(taken[:, None], kept[:, None] * weights_Tk, weights_Tk)
        weights_Tk[taken, i] = added[taken]
        accepted_Tk[:, i] = taken
        started |= taken & (own > 0)
        count += taken
    return _decisions(folds, weights_Tk, accepted_Tk, distances_Tk, finite_Tk, count)


def _decisions(
    folds: Sequence[Fold],
    weights_Tk: np.ndarray,
    accepted_Tk: np.ndarray,
    distances_Tk: np.ndarray,
    finite_Tk: np.ndarray,
    count: np.ndarray,
) -> list[Decision]:
    divide = np.array([fold.divide for fold in folds])
    steps = count >= np.array([fold.minimum for fold in folds])
    weights_Tk = weights_Tk / np.where(divide, np.maximum(count, 1), 1)[:, None]
    parts = [
        torch.from_numpy(array).unbind(0)
        for array in (
            np.where(steps[:, None], weights_Tk, 0.0),
            accepted_Tk & steps[:, None],
            distances_Tk,
            finite_Tk,
        )
    ]
    return [
        Decision(weights=w, accepted=a, step=s, distances=d, finite=f)
        for w, a, d, f, s in zip(*parts, steps.tolist(), strict=True)
    ]
