"""What weightings that see all inner products at once share: distances, checks and decisions.

Shape legend: k micro-gradients, c of them finite.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gafscope.aggregation.decision import Decision
from gafscope.errors import UserError
from gafscope.geometry import centred_gramian, finite_rows
from gafscope.gradients import Gramian

# A sum shorter than this share of what went into it has cancelled to rounding noise.
_CANCELLED = 1e-13


def finite_products(
    gramian: Gramian, rule: str, least: int, remedy: str = "Mean for plain training"
) -> tuple[Float64[Tensor, "k k"], Bool[Tensor, " k"]]:
    """Give the inner products with zeros in place of rows that are not finite.

    Args:
        gramian: Inner products of k micro-gradients, on any device.
        rule: The rule's name, for the message.
        least: The fewest micro-gradients that the rule can work on, finite or not.
        remedy: What else to use, for the message.

    Returns:
        (k, k) on the CPU, and which rows are finite.

    Raises:
        UserError: If there are fewer than `least`.
    """
    if gramian.k < least:
        raise UserError(
            f"{rule} needs at least {least} micro-gradients, but there is k = {gramian.k}; use "
            f"microbatches={least} or more, or {remedy}."
        )
    matrix = gramian.matrix.cpu()
    finite = finite_rows(matrix)
    return torch.where(finite[:, None] & finite[None, :], matrix, 0.0), finite


def check_count(m: int) -> None:
    """Refuse to accept no row at all.

    Args:
        m: The number of rows to accept.

    Raises:
        UserError: If it is below 1.
    """
    if m < 1:
        raise UserError(f"m, the number of rows to accept, must be at least 1, but is {m}.")


def distances_to_others(
    products_kk: Float64[Tensor, "k k"], finite: Bool[Tensor, " k"]
) -> Float64[Tensor, " k"]:
    """Give the cosine distance of each row to the sum of the others, whatever their order.

    Args:
        products_kk: Inner products, zero where a row is not finite.
        finite: (k,), which rows are finite.

    Returns:
        (k,) in [0, 2]; 1 when the row or the sum is zero (or has cancelled to rounding noise),
        NaN when the row is not finite or has no other beside it. In O(k^3) additions.
    """
    squares = products_kk.diagonal()
    others = finite.double() - torch.diag(finite.double())
    sums = others @ products_kk
    dots, lengths = sums.diagonal(), (sums * others).sum(1)
    distance = 1 - dots / (squares.sqrt() * lengths.clamp(min=0.0).sqrt())
    nowhere = (squares == 0) | (lengths <= _CANCELLED * (others @ squares))
    distance = torch.where(nowhere, 1.0, distance).clamp(0.0, 2.0)
    return torch.where(finite & (finite.sum() > 1), distance, math.nan)


def deviations(
    products_kk: Float64[Tensor, "k k"], finite: Bool[Tensor, " k"]
) -> Float64[Tensor, " k"]:
    """Give the Euclidean distance of each finite row to the mean of the other finite ones.

    Args:
        products_kk: Inner products, zero where a row is not finite.
        finite: (k,), which rows are finite.

    Returns:
        (k,) in the rows' own unit; NaN when the row is not finite or has no other beside it.
    """
    away = torch.full((len(finite),), math.nan, dtype=torch.float64)
    c = int(finite.sum())
    if c > 1:
        centred = centred_gramian(products_kk[finite][:, finite])
        away[finite] = centred.diagonal().sqrt() * (c / (c - 1))
    return away


def typical_norm(products_kk: Float64[Tensor, "k k"]) -> float:
    """Give the median norm of the rows that are neither zero nor not finite; 1 without any.

    Distances in this unit do not change when all rows are scaled, nor much for one large row.

    Args:
        products_kk: Inner products, zero where a row is not finite.
    """
    squares = products_kk.diagonal()
    norms = squares[squares > 0].sqrt()
    return float(norms.quantile(0.5)) if len(norms) else 1.0


def averaged(
    accepted: Bool[Tensor, " k"],
    distances: Float64[Tensor, " k"],
    finite: Bool[Tensor, " k"],
    least: int = 2,
) -> Decision:
    """Average the accepted rows, or skip when there are fewer than `least`.

    Args:
        accepted: (k,), which rows the rule accepts; those that are not finite are not.
        distances: (k,), what the rule compared.
        finite: (k,), which rows are finite.
        least: The fewest that an update is made of; two must agree in a filter.

    Returns:
        The decision.
    """
    accepted = accepted & finite
    accepted = accepted & (accepted.sum() >= least)
    return weighted(accepted.double(), distances, finite)


def weighted(
    weights: Float64[Tensor, " k"], distances: Float64[Tensor, " k"], finite: Bool[Tensor, " k"]
) -> Decision:
    """Weigh the rows in the given proportions, or skip when all of them are 0.

    Args:
        weights: (k,), not negative, of any sum.
        distances: (k,), what the rule compared.
        finite: (k,), which rows are finite.

    Returns:
        The decision; a row is accepted when it has a weight.
    """
    total = weights.sum()
    step = bool(total > 0)
    return Decision(weights / total if step else weights, weights > 0, step, distances, finite)
