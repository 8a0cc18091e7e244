"""What a metric measures: the finite rows of a Gramian, or the gradients themselves.

Shape legend: k rows, n of them finite; p numbers of one parameter in a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gafscope import geometry
from gafscope.errors import UserError, unknown_name
from gafscope.gradients import GradientRows, Gramian

Source = Gramian | GradientRows
"""A Gramian, or gradients of which the Gramian is taken."""


def finite_gramian(
    source: Source, layer: str | None, metric: str, minimum: int
) -> tuple[Float64[Tensor, "n n"], str]:
    """Give the inner products of the finite rows.

    Args:
        source: A Gramian, or gradients.
        layer: A parameter's name, or None for the whole model.
        metric: The metric's name, for the error.
        minimum: The least number of finite rows that it needs.

    Returns:
        The matrix on the CPU, and a note that counts the rows left out ("" if there are none).

    Raises:
        UserError: If the source is neither, there is no such layer, or there are too few rows.
    """
    matrix, _, note = finite_part(source, layer, metric, minimum)
    return matrix, note


def finite_part(
    source: Source, layer: str | None, metric: str, minimum: int
) -> tuple[Float64[Tensor, "n n"], Bool[Tensor, " k"], str]:
    """Give the inner products of the finite rows and tell which rows these are.

    Args:
        source: As for `finite_gramian`, like the others.
        layer: A parameter's name, or None.
        metric: The metric's name.
        minimum: The least number of finite rows.

    Returns:
        The matrix on the CPU, a mask over all k rows, and the note.

    Raises:
        UserError: As `finite_gramian`.
    """
    matrix = _matrix(source, layer, metric).cpu()
    finite = geometry.finite_rows(matrix)
    note = _checked(finite, metric, minimum)
    return matrix[finite][:, finite], finite, note


def finite_gradients(
    source: Source, layer: str | None, metric: str, minimum: int
) -> tuple[Mapping[str, Tensor], str]:
    """Give the finite rows themselves, for a metric that looks at single coordinates.

    Args:
        source: Gradients.
        layer: A parameter's name, or None for all of them.
        metric: The metric's name, for the error.
        minimum: The least number of finite rows that it needs.

    Returns:
        Parameter name -> (n, p), in the parameter's own type, and a note that counts the rows
        left out.

    Raises:
        UserError: If the source is a Gramian, there is no such layer, or there are too few rows.
    """
    if isinstance(source, Gramian):
        raise UserError(
            f"{metric} looks at single coordinates, so it needs the gradients themselves, but got "
            "a Gramian; pass the GradientRows that gafscope.microbatch_gradients returns."
        )
    named = _named(source, layer, metric)
    flat = {name: rows.detach().reshape(len(rows), -1) for name, rows in named.items()}
    finite = torch.stack([rows.isfinite().all(1).cpu() for rows in flat.values()]).all(0)
    note = _checked(finite, metric, minimum)
    if finite.all():
        return flat, note
    return {name: rows[finite.to(rows.device)] for name, rows in flat.items()}, note


def layer_names(source: Source) -> tuple[str, ...]:
    """List the layers that can be measured one by one.

    Args:
        source: A Gramian, or gradients.

    Returns:
        The parameters' names; empty for a Gramian that keeps no layers.
    """
    return tuple(source.layers if isinstance(source, Gramian) else source.named)


def _matrix(source: Source, layer: str | None, metric: str) -> Tensor:
    if isinstance(source, Gramian):
        return source.of(layer)
    return GradientRows(_named(source, layer, metric)).gramian(layers=False).matrix


def _named(source: Source, layer: str | None, metric: str) -> Mapping[str, Tensor]:
    if not isinstance(source, GradientRows):
        raise UserError(
            f"{metric} measures a Gramian or GradientRows, but got {type(source).__name__}; "
            "compute one with gafscope.gramian or gafscope.microbatch_gradients."
        )
    if layer is None:
        return source.named
    if layer not in source.named:
        raise unknown_name("layer", layer, source.named)
    return {layer: source.named[layer]}


def _checked(finite: Bool[Tensor, " k"], metric: str, minimum: int) -> str:
    k, n = len(finite), int(finite.sum())
    if n < minimum:
        some = "" if n == k else f" ({k - n} more are not finite)"
        raise UserError(
            f"{metric} needs at least {minimum} finite micro-gradients, but there are {n}{some}; "
            "use more microbatches."
        )
    return "" if n == k else f"{k - n} of {k} rows not finite, left out"
