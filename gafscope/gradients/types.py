"""What the engines return: gradient rows, and the Gramian of those rows.

Shape legend: k rows (microbatches or samples), P trainable numbers in all.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gafscope import geometry
from gafscope.errors import UserError, unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True, eq=False)
class Gramian:
    """Inner products of k micro-gradients, `K[i, j] = <g_i, g_j>`.

    Attributes:
        matrix: (k, k), kept as float64, over all trainable parameters.
        layers: One (k, k) float64 matrix a parameter, by its name; they add up to `matrix`.
            Empty where only the whole was asked for.
        engine: The engine that computed it: "loop", "vmap" or "ghost".
        notes: What the reader should know, e.g. why "auto" turned to another engine.
    """

    matrix: Float[Tensor, "k k"]
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    engine: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "matrix", self.matrix.double())
        shape = tuple(self.matrix.shape)
        if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
            raise UserError(
                f"A Gramian is a square matrix of at least one row, but this one is {shape}."
            )

    @property
    def k(self) -> int:
        """Number of micro-gradients."""
        return len(self.matrix)

    def of(self, layer: str | None) -> Float64[Tensor, "k k"]:
        """Give the matrix of one layer, or of the whole model.

        Args:
            layer: A parameter's name, or None for all of them together.

        Returns:
            (k, k) float64.

        Raises:
            UserError: If there is no such layer.
        """
        if layer is None:
            return self.matrix
        if not self.layers:
            raise UserError(
                f"This Gramian holds no layers, so it has none for '{layer}'; "
                "compute it with layers=True."
            )
        if layer not in self.layers:
            raise unknown_name("layer", layer, self.layers)
        return self.layers[layer]

    def cosine_distance(self, layer: str | None = None) -> Float64[Tensor, "k k"]:
        """Give the pairwise cosine distances, `1 - K[i, j] / sqrt(K[i, i] K[j, j])`.

        Args:
            layer: A parameter's name, or None for the whole model.

        Returns:
            (k, k) in [0, 2]: 0 aligned, 1 orthogonal or zero, 2 opposed, NaN not finite.

        Raises:
            UserError: If there is no such layer.
        """
        return geometry.cosine_distance(self.of(layer))

    def plot(self) -> Figure:
        """Draw the matrix of cosine distances, with the mean distance of each layer beside it.

        Returns:
            A matplotlib figure.
        """
        from gafscope.plots.matrices import plot_gramian

        layers = {name: matrix.cpu().numpy() for name, matrix in self.layers.items()}
        return plot_gramian(self.matrix.cpu().numpy(), layers or None)

    def __repr__(self) -> str:
        mean = geometry.mean_pairwise_distance(self.matrix)
        return (
            f"Gramian(k={self.k}, layers={len(self.layers)}, engine={self.engine!r}, "
            f"mean cosine distance={mean:.4f})"
        )

    def _repr_html_(self) -> str:
        finite = geometry.finite_rows(self.matrix)
        rows = {
            "micro-gradients": f"{self.k} ({int((~finite).sum())} not finite)",
            "mean cosine distance": f"{geometry.mean_pairwise_distance(self.matrix):.4f}",
            "layers": len(self.layers),
            "engine": self.engine,
            "notes": "; ".join(self.notes) or "none",
        }
        return _table("Gramian", rows)


@final
@dataclass(frozen=True, eq=False)
class GradientRows:
    """The micro-gradients themselves.

    Attributes:
        named: Parameter name -> (k, *parameter.shape), in the parameter's own type.
        engine: The engine that computed them.
        notes: As in `Gramian`.
    """

    named: Mapping[str, Tensor]
    engine: str = ""
    notes: tuple[str, ...] = ()

    @property
    def k(self) -> int:
        """Number of micro-gradients."""
        return len(next(iter(self.named.values())))

    def flat(self) -> Float[Tensor, "k P"]:
        """Lay all parameters of a row end to end.

        Returns:
            (k, P), a copy.
        """
        return torch.cat([flat_rows(rows) for rows in self.named.values()], dim=1)

    def gramian(self, layers: bool = True) -> Gramian:
        """Compute the inner products of all rows.

        Args:
            layers: Keep the matrix of each parameter as well.

        Returns:
            The Gramian, in float64.
        """
        matrices = {name: geometry.gramian(flat_rows(rows)) for name, rows in self.named.items()}
        return Gramian(
            matrix=sum_of_layers(matrices),
            layers=matrices if layers else {},
            engine=self.engine,
            notes=self.notes,
        )

    def combine(self, weights: Tensor) -> dict[str, Tensor]:
        """Add the rows up, `sum_i w_i g_i`.

        A row of weight 0 is left out, not multiplied: 0 * nan would be nan.

        Args:
            weights: (k,).

        Returns:
            Parameter name -> tensor of the parameter's shape and type.

        Raises:
            UserError: If there is not one weight a row.
        """
        if tuple(weights.shape) != (self.k,):
            raise UserError(
                f"combine takes one weight a row, shape ({self.k},), "
                f"but these have shape {tuple(weights.shape)}."
            )
        return {name: combine_rows(rows, weights) for name, rows in self.named.items()}

    def __repr__(self) -> str:
        return (
            f"GradientRows(k={self.k}, parameters={len(self.named)}, numbers={self._numbers}, "
            f"engine={self.engine!r})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "micro-gradients": self.k,
            "parameters": len(self.named),
            "numbers in each": self._numbers,
            "engine": self.engine,
            "notes": "; ".join(self.notes) or "none",
        }
        return _table("GradientRows", rows)

    @property
    def _numbers(self) -> int:
        return sum(rows[0].numel() for rows in self.named.values())


def flat_rows(rows: Float[Tensor, "k ..."]) -> Float[Tensor, "k n"]:
    """Lay the numbers of each row end to end.

    Args:
        rows: (k, *shape); the shape is () for a parameter that is a single number.

    Returns:
        (k, n).
    """
    return rows.reshape(len(rows), -1)


def sum_of_layers(matrices: Mapping[str, Tensor]) -> Float64[Tensor, "k k"]:
    """Add the layers' Gramians; a row that is not finite in one layer is not in the whole.

    Args:
        matrices: Parameter name -> (k, k) float64. Parameters may live on several devices.

    Returns:
        (k, k) float64 on the first one's device.
    """
    first, *others = matrices.values()
    total = first.clone()
    for layer in others:
        total += layer.to(total.device)
    return total


def combine_rows(rows: Float[Tensor, "k ..."], weights: Float[Tensor, " k"]) -> Float[Tensor, ...]:
    """Add one parameter's rows up; a row of weight 0 is left out.

    Args:
        rows: (k, *shape).
        weights: (k,).

    Returns:
        (*shape), of the rows' type; half-precision rows are added up in float32.
    """
    half = rows.dtype in (torch.bfloat16, torch.float16)
    total = torch.zeros_like(rows[0], dtype=torch.float32 if half else None)
    for i, weight in enumerate(weights.tolist()):
        if weight != 0:
            total.add_(rows[i], alpha=weight)
    return total.to(rows.dtype)


def _table(caption: str, rows: Mapping[str, object]) -> str:
    cells = "".join(
        f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{caption}</caption>{cells}</table>"
