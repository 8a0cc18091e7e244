"""What a convolution contributes to the rows of its weight.

Shape legend: n samples in k rows, C input and D output channels, pixels of any number of
dimensions; the weight is (D, C / groups, *kernel), a transposed one's (C, D / groups, *kernel).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from gafscope.gradients.ghost.products import Products


@final
@dataclass(frozen=True)
class Geometry:
    """The arguments of a convolution.

    Attributes:
        kernel: Extent of the kernel.
        stride: As torch has it, one number a dimension.
        padding: Zeros on either side.
        dilation: As torch has it.
        transposed: Whether it is a transposed one.
        output_padding: Of a transposed one.
        groups: As torch has it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @property
    def plain(self) -> bool:
        """Neither grouped nor transposed."""
        return self.groups == 1 and not self.transposed

    @property
    def offsets(self) -> list[tuple[int, ...]]:
        """Where each entry of the kernel looks, relative to the padded input's corner."""
        steps = [range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True)]
        return list(itertools.product(*steps))

    @property
    def shifts(self) -> list[tuple[int, ...]]:
        """Where each entry of the kernel looks, relative to the output's pixel (stride 1)."""
        return [
            tuple(o - p for o, p in zip(offset, self.padding, strict=True))
            for offset in self.offsets
        ]


@final
class Convolution:
    """The factors of a convolution's rows.

    Args:
        inputs: (n, C, *pixels), samples of one row side by side.
        gradient: (n, D, *pixels), the gradient of the output.
        shape: The weight's shape.
        geometry: The convolution's arguments.
        k: Number of rows.
    """

    def __init__(
        self, inputs: Tensor, gradient: Tensor, shape: torch.Size, geometry: Geometry, k: int
    ):
        self.inputs, self.gradient = inputs, gradient
        self.shape, self.geometry, self.k = shape, geometry, k

    @property
    def nbytes(self) -> int:
        """Memory of both factors."""
        return self.inputs.nbytes + self.gradient.nbytes

    def first(self, rows: int) -> Convolution:
        """Give the factors of the first rows."""
        samples = rows * (len(self.inputs) // self.k)
        inputs, gradient = self.inputs[:samples], self.gradient[:samples]
        return Convolution(inputs, gradient, self.shape, self.geometry, rows)

    def to(self, dtype: torch.dtype) -> Convolution:
        """Give factors of another type."""
        inputs, gradient = self.inputs.to(dtype), self.gradient.to(dtype)
        return Convolution(inputs, gradient, self.shape, self.geometry, self.k)

    @property
    def dtype(self) -> torch.dtype:
        """Type of both factors."""
        return self.inputs.dtype

    def slab(self, start: int, stop: int) -> Tensor:
        """Compute the weight's gradient row by row, for some of its first dimension."""
        u = len(self.inputs) // self.k
        whole = (start, stop) == (0, self.shape[0])
        assert whole or self.geometry.plain
        rows = self.inputs.new_empty(self.k, stop - start, prod(self.shape[1:]))
        gradient = self.gradient if whole else self.gradient[:, start:stop]
        shape = (stop - start, *self.shape[1:])
        for i in range(self.k):
            part = slice(i * u, (i + 1) * u)
            rows[i] = self._weight_gradient(self.inputs[part], gradient[part], shape).flatten(1)
        return rows

    def combine(self, index: Tensor | None, weights: Tensor) -> Tensor:
        """Compute the weight's gradient once, of the weighted samples."""
        u = len(self.inputs) // self.k
        inputs, gradient = self.inputs, self.gradient
        if index is not None:
            index = (index[:, None] * u + torch.arange(u, device=index.device)).flatten()
            inputs, gradient = inputs[index], gradient[index]
        scale = weights.to(gradient.dtype).repeat_interleave(u)
        gradient = gradient * scale.view(-1, *[1] * (gradient.ndim - 1))
        return self._weight_gradient(inputs, gradient, self.shape)

    def unfolded(self, workspace: int, products: Products) -> Tensor:
        """Materialise the rows as those of a dense layer on every pixel's neighbourhood.

        Args:
            workspace: Bytes that unfolded inputs may take; rows are taken some at a time.
            products: Whose memory to use.

        Returns:
            (k, numel), the kernel's entries before the input channels.
        """
        assert self.geometry.plain
        inputs = self._padded_pixels()
        outputs = self.gradient.movedim(1, -1)
        pixels, width = outputs.shape[1:-1], prod(self.geometry.kernel) * self.shape[1]
        stride = inputs.stride()
        steps = [p * s for p, s in zip(stride[1:-1], self.geometry.stride, strict=True)]
        reach = [p * d for p, d in zip(stride[1:-1], self.geometry.dilation, strict=True)]
        seen = inputs.as_strided(
            (len(inputs), *pixels, *self.geometry.kernel, self.shape[1]),
            (stride[0], *steps, *reach, stride[-1]),
        )
        u = len(inputs) // self.k
        count = max(1, workspace // (u * prod(pixels) * width * inputs.element_size()))
        rows = products.scratch((self.k, self.shape[0], width), inputs)
        for i in range(0, self.k, count):
            part = slice(i * u, (i + count) * u)
            right = seen[part].reshape(-1, u * prod(pixels), width)
            left = outputs[part].reshape(len(right), -1, self.shape[0])
            torch.bmm(left.transpose(1, 2), right, out=rows[i : i + count])
        return rows.flatten(1)

    def taps(self, channels: int, products: Products) -> Iterator[Tensor]:
        """Materialise the rows entry of the kernel by entry, some output channels at a time.

        Args:
            channels: Output channels at a time.
            products: Whose memory to use.

        Yields:
            (k, channels * C), together all numbers of the rows.
        """
        assert self.geometry.plain
        inputs = self._padded_pixels()
        outputs = self.gradient.movedim(1, -1)
        pixels = outputs.shape[1:-1]
        outputs = outputs.reshape(self.k, -1, self.shape[0]).transpose(1, 2)
        for window in self._windows(pixels):
            seen = inputs[window].reshape(self.k, -1, self.shape[1])
            for start in range(0, self.shape[0], channels):
                left = outputs[:, start : start + channels]
                buffer = products.scratch((self.k, left.shape[1], self.shape[1]), seen)
                yield torch.bmm(left, seen, out=buffer).flatten(1)

    def _windows(self, pixels: torch.Size) -> Iterator[tuple[slice, ...]]:
        """Give, for each entry of the kernel, the part of the padded input that it sees."""
        for offset in self.geometry.offsets:
            window = (
                slice(o, o + (size - 1) * s + 1, s)
                for o, size, s in zip(offset, pixels, self.geometry.stride, strict=True)
            )
            yield (slice(None), *window)

    def _padded_pixels(self) -> Tensor:
        """Give the padded input with its channels last, (n, *pixels, C)."""
        pads = [pad for p in reversed(self.geometry.padding) for pad in (p, p)]
        return F.pad(self.inputs.movedim(1, -1), (0, 0, *pads)).contiguous()

    def _weight_gradient(self, inputs: Tensor, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
        geometry = self.geometry
        # Only the shape of the weight is looked at.
        weight = inputs.new_empty(shape)
        return torch.ops.aten.convolution_backward(
            gradient,
            inputs,
            weight,
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.transposed,
            geometry.output_padding,
            geometry.groups,
            [False, True, False],
        )[1]


def shifted_gram(piece: Convolution, products: Products) -> Tensor:
    """Compute the Gramian of a convolution of stride 1 from pixel Gramians, without unfolding.

    `K[i, j] = sum over offsets o and pixels t, s of <x_i(t + o), x_j(s + o)> <b_i(t), b_j(s)>`
    with inputs x and output gradients b.

    Args:
        piece: The convolution; neither strided, grouped nor transposed.
        products: How to multiply.

    Returns:
        (k, k) float64.
    """
    n, shifts = len(piece.inputs), piece.geometry.shifts
    # Pixels first and samples last, so that a shift moves whole runs of n numbers.
    x = piece.inputs.movedim((0, 1), (-2, -1)).contiguous()
    b = piece.gradient.movedim((0, 1), (-2, -1)).contiguous()
    strip = -(-len(b) // 4)
    x_gram = _upper_gram(x, strip, products)
    total = torch.zeros(n, n, dtype=torch.float64, device=x.device)
    for t in range(0, len(b), strip):
        # Both factors are symmetric: pixels s before t are those of an earlier strip, transposed.
        seen = torch.zeros_like(b_gram := _product(b[t : t + strip], b[t:], products))
        for shift in shifts:
            _add_shifted(seen, x_gram, shift, t, x.shape[:-2], b.shape[:-2])
        terms = seen.mul_(b_gram).view(-1, n, b[t:].numel() // (n * b.shape[-1]), n)
        inside = b[t : t + strip].numel() // (n * b.shape[-1])
        total += terms[:, :, :inside].sum((0, 2))
        after = terms[:, :, inside:].sum((0, 2)).double()
        total += after + after.T
    u = n // piece.k
    return total.view(piece.k, u, piece.k, u).sum((1, 3))


def _product(a: Tensor, b: Tensor, products: Products) -> Tensor:
    """Multiply all pixels of a with those of b, (*pixels of a, n, *pixels of b, n)."""
    left, right = products.prepared(a.flatten(0, -2)), products.prepared(b.flatten(0, -2))
    product = left @ right.T
    if product.dtype == torch.bfloat16:
        product = product.float()
    return product.view(*a.shape[:-1], *b.shape[:-1])


def _upper_gram(x: Tensor, strip: int, products: Products) -> Tensor:
    """Multiply all pixels of x; of pairs further than a strip below the diagonal, nothing."""
    dtype = torch.float64 if products.precision == "float64" or x.dtype == torch.float64 else None
    gram = x.new_empty(*x.shape[:-1], *x.shape[:-1], dtype=dtype or torch.float32)
    columns = x.ndim - 1
    for t in range(0, len(x), strip):
        first = max(0, t - strip + 1)
        gram[t : t + strip].narrow(columns, first, len(x) - first).copy_(
            _product(x[t : t + strip], x[first:], products)
        )
    return gram


def _add_shifted(
    seen: Tensor,
    x_gram: Tensor,
    shift: tuple[int, ...],
    first: int,
    x_pixels: torch.Size,
    b_pixels: torch.Size,
) -> None:
    """Add <x(t + shift), x(s + shift)> wherever both pixels exist."""
    rows, columns, rows_from, columns_from = [], [], [], []
    for dim, (move, x_size, b_size) in enumerate(zip(shift, x_pixels, b_pixels, strict=True)):
        origin = first if dim == 0 else 0
        stop = min(b_size, x_size - move)
        start = max(origin, -move)
        row_stop = min(stop, origin + seen.shape[dim])
        if row_stop <= start:
            return
        rows.append(slice(start - origin, row_stop - origin))
        columns.append(slice(start - origin, stop - origin))
        rows_from.append(slice(start + move, row_stop + move))
        columns_from.append(slice(start + move, stop + move))
    every = slice(None)
    seen[(*rows, every, *columns, every)] += x_gram[(*rows_from, every, *columns_from, every)]
