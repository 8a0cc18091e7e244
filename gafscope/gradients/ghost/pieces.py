"""What one call contributes to the rows of one parameter.

Shape legend: k rows, T positions each, (p, q) a matrix parameter, `shape` any parameter's shape.
"""

from __future__ import annotations

from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Piece(Protocol):
    """A contribution to the k rows of a parameter, kept in factors."""

    def slab(self, start: int, stop: int) -> Tensor:
        """Give the rows' numbers at indices start..stop-1 of the parameter's first dimension.

        Returns:
            (k, stop - start, rest).
        """
        ...

    def combine(self, index: Tensor | None, weights: Tensor) -> Tensor:
        """Add up rows, `sum_i w_i row_i`.

        Args:
            index: The rows that take part; None for all.
            weights: Their weights.

        Returns:
            As many numbers as the parameter has, in its order.
        """
        ...

    def first(self, rows: int) -> Piece:
        """Give the piece of the first rows alone."""
        ...

    def to(self, dtype: torch.dtype) -> Piece:
        """Give the piece with factors of another type."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the factors."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that the factors take."""
        ...


@final
class Rows:
    """Rows that are there as they are.

    Args:
        rows: (k, *shape).
    """

    def __init__(self, rows: Tensor):
        first = rows.shape[1] if rows.ndim > 1 else 1
        self.rows = rows.reshape(len(rows), first, -1)

    def slab(self, start: int, stop: int) -> Tensor:
        """Give a part of the rows."""
        return self.rows[:, start:stop]

    def combine(self, index: Tensor | None, weights: Tensor) -> Tensor:
        """Add up rows."""
        rows = self.rows if index is None else self.rows[index]
        return weights.to(rows.dtype) @ rows.flatten(1)

    def first(self, rows: int) -> Rows:
        """Give the first rows."""
        return Rows(self.rows[:rows])

    def to(self, dtype: torch.dtype) -> Rows:
        """Give rows of another type."""
        return Rows(self.rows.to(dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows."""
        return self.rows.dtype

    @property
    def nbytes(self) -> int:
        """Memory of the rows."""
        return self.rows.nbytes


@final
class Outer:
    """Sums of outer products, `row_i = sum_t left_it right_it^T`: dense layers.

    Args:
        left: (k, T, p), e.g. the gradient of a layer's output.
        right: (k, T, q), e.g. its input.
    """

    def __init__(self, left: Tensor, right: Tensor):
        self.left, self.right = left, right

    @property
    def width(self) -> int:
        """Number of columns of the left factor, p."""
        return self.left.shape[2]

    def slab(self, start: int, stop: int) -> Tensor:
        """Multiply part of the left factor with the right one."""
        return torch.bmm(self.left[:, :, start:stop].transpose(1, 2), self.right)

    def combine(self, index: Tensor | None, weights: Tensor) -> Tensor:
        """Multiply with the weights inside, `sum_it left_it w_i right_it^T`."""
        left, right = (self.left, self.right)
        if index is not None:
            left, right = left[index], right[index]
        scale = weights.to(left.dtype)[:, None, None]
        if right.numel() < left.numel():
            right = right * scale
        else:
            left = left * scale
        return left.flatten(0, 1).T @ right.flatten(0, 1)

    def first(self, rows: int) -> Outer:
        """Give the factors of the first rows."""
        return Outer(self.left[:rows], self.right[:rows])

    def to(self, dtype: torch.dtype) -> Outer:
        """Give factors of another type."""
        return Outer(self.left.to(dtype), self.right.to(dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Type of both factors."""
        return self.right.dtype

    @property
    def nbytes(self) -> int:
        """Memory of both factors."""
        return self.left.nbytes + self.right.nbytes


@final
class Lookup:
    """Sums of outer products with unit vectors, `row_i = sum_t e(id_it) right_it^T`: embeddings.

    Args:
        ids: (k, T) indices below p.
        right: (k, T, q), the gradient of what was looked up; zero where nothing counts.
        width: p, the number of vectors.
    """

    def __init__(self, ids: Tensor, right: Tensor, width: int):
        self.ids, self.right, self.width = ids, right, width

    def slab(self, start: int, stop: int) -> Tensor:
        """Add the gradients up that belong to some of the indices."""
        k, _, q = self.right.shape
        rows = self.right.new_zeros(k * (stop - start), q)
        inside = (self.ids >= start) & (self.ids < stop)
        offsets = torch.arange(k, device=self.ids.device)[:, None] * (stop - start) - start
        rows.index_add_(0, (self.ids + offsets)[inside], self.right[inside])
        return rows.view(k, stop - start, q)

    def combine(self, index: Tensor | None, weights: Tensor) -> Tensor:
        """Add the weighted gradients up."""
        ids, right = (self.ids, self.right)
        if index is not None:
            ids, right = ids[index], right[index]
        right = right * weights.to(right.dtype)[:, None, None]
        total = right.new_zeros(self.width, right.shape[2])
        return total.index_add_(0, ids.flatten(), right.flatten(0, 1))

    def first(self, rows: int) -> Lookup:
        """Give the factors of the first rows."""
        return Lookup(self.ids[:rows], self.right[:rows], self.width)

    def to(self, dtype: torch.dtype) -> Lookup:
        """Give gradients of another type."""
        return Lookup(self.ids, self.right.to(dtype), self.width)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the gradients."""
        return self.right.dtype

    @property
    def nbytes(self) -> int:
        """Memory of indices and gradients."""
        return self.ids.nbytes + self.right.nbytes
