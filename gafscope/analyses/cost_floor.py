"""The least that a Gramian can cost, counted in multiply-adds.

Shape legend: n samples in k microbatches, T positions (tokens, pixels) a sample, d_in and d_out
numbers a position; a convolution's d_in counts its kernel, C_in k_h k_w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gafscope.analyses.cost_cases import Case
from gafscope.gradients.isolation import untouched


@final
@dataclass(frozen=True)
class Layer:
    """One call of a dense layer or a convolution.

    Attributes:
        t: Positions a sample in the output, T.
        d_in: Numbers that an output number is computed from.
        d_out: Output numbers a position.
        pixels: Positions a sample in the input, where the shifted form exists; else None.
        c_in: Input channels of a convolution.
    """

    t: int
    d_in: int
    d_out: int
    pixels: int | None = None
    c_in: int = 0

    def weight_gradient(self, n: int) -> float:
        """Count the mean gradient of n samples, `n T d_in d_out`."""
        return float(n * self.t * self.d_in * self.d_out)

    def gramian(self, n: int, k: int) -> float:
        """Count the cheapest form of the layer's Gramian of k microbatches."""
        return min(cost for cost, _ in self._forms(n, k))

    def gramian_and_update(self, n: int, k: int) -> float:
        """Count the cheapest form of Gramian and weighted sum of the k gradients together."""
        return min(cost + update for cost, update in self._forms(n, k))

    def _forms(self, n: int, k: int) -> list[tuple[float, float]]:
        """Give each form's multiply-adds, and those of the weighted sum after it."""
        d_in, d_out = self.d_in, self.d_out
        rows = self.weight_gradient(n) + k * k * d_in * d_out / 2
        forms = [
            # All pairs of inputs, of output gradients, and their product:
            # n^2 T^2 (d_in + d_out + 1) / 2.
            (n * n * self.t**2 * (d_in + d_out + 1) / 2, self.weight_gradient(n)),
            # The rows, n T d_in d_out, and their products, k^2 d_in d_out / 2.
            (rows, float(k * d_in * d_out)),
        ]
        if self.pixels is not None:
            # The same with pairs of pixels, one product a shift of the kernel:
            # n^2 (S^2 (C_in + C_out) + T^2 k_h k_w) / 2.
            taps = d_in // self.c_in
            pairs = self.pixels**2 * (self.c_in + d_out) + self.t**2 * taps
            forms.append((n * n * pairs / 2, self.weight_gradient(n)))
        return forms


@final
@dataclass(frozen=True)
class Floor:
    """Least cost of each measurement over one plain forward and backward.

    Attributes:
        gramian: Forward, input gradients and Gramian.
        step: The same with `sum_i w_i g_i`.
    """

    gramian: float
    step: float


def flop_floor(case: Case, k: int) -> Floor:
    """Count the floor of k microbatches' Gramian.

    `floor = (forward + input gradients + Gramian) / (forward + backward)`; the backward has the
    weight gradients besides. torch counts forward and backward, attention's own products
    included; the weight gradients and the Gramian's cheapest form are counted layer by layer for
    `nn.Linear` and `nn.Conv2d`. Left out on both sides: everything that is no matrix product
    (norms, activations, softmax, embeddings), and the cross terms of tied weights. These are not
    free, and small products run slower than large ones, so measured ratios lie above.

    Args:
        case: Network and batch of n samples.
        k: Number of microbatches.

    Returns:
        The floors.
    """
    layers: list[Layer] = []
    handles = [
        module.register_forward_hook(partial(_record, layers))
        for module in case.model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        with (
            untouched(case.model),
            sdpa_kernel(SDPBackend.MATH),  # the fused kernel of the CPU would count for nothing
            FlopCounterMode(display=False) as counter,
        ):
            # One sample: all plain costs are proportional to n.
            losses = case.loss(case.model, case.first(1))
            torch.autograd.grad(losses.sum(), case.parameters)
    finally:
        for handle in handles:
            handle.remove()
    n = case.n
    plain = n * counter.get_total_flops() / 2
    shared = plain - math.fsum(layer.weight_gradient(n) for layer in layers)
    return Floor(
        gramian=(shared + math.fsum(layer.gramian(n, k) for layer in layers)) / plain,
        step=(shared + math.fsum(layer.gramian_and_update(n, k) for layer in layers)) / plain,
    )


def _record(
    layers: list[Layer], module: nn.Module, inputs: tuple[Any, ...], output: Tensor
) -> None:
    if isinstance(module, nn.Linear):
        positions = output.numel() // len(output) // module.out_features
        layers.append(Layer(positions, module.in_features, module.out_features))
        return
    # torch's count of a grouped convolution's backward is wrong; the networks have none.
    assert isinstance(module, nn.Conv2d) and module.groups == 1
    kernel = math.prod(module.kernel_size)
    unit_stride = set(module.stride) == {1}
    layers.append(
        Layer(
            t=math.prod(output.shape[2:]),
            d_in=module.in_channels * kernel,
            d_out=module.out_channels,
            pixels=math.prod(inputs[0].shape[2:]) if unit_stride and kernel > 1 else None,
            c_in=module.in_channels,
        )
    )
