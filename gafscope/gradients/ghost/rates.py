"""What the parts of a Gramian cost on this machine.

Forms of one product differ in work by orders of magnitude, so the model is coarse: the rate of
large matrix products, the rate at which memory is passed through, and what a call costs. It is
measured once a process and device, and then rounded to powers of four times a typical machine's
values: noise must not change which form is taken, and with it the last bits of a result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Rates:
    """Speeds of a device.

    Attributes:
        products: Multiply-adds a second in large matrix products of float32.
        traffic: Bytes a second read or written by elementwise operations.
        call: Seconds that one call takes at least.
    """

    products: float
    traffic: float
    call: float


_TYPICAL = {
    "cpu": Rates(products=45e9, traffic=30e9, call=10e-6),
    "cuda": Rates(products=15e12, traffic=1.5e12, call=8e-6),
}


@cache
def rates(device: str) -> Rates:
    """Measure a device, once a process.

    Args:
        device: Its type, "cpu" or "cuda".

    Returns:
        The rounded rates.
    """
    typical = _TYPICAL.get(device, _TYPICAL["cpu"])
    size = 384 if device == "cpu" else 2048
    square = torch.ones(size, size, device=device)
    long = torch.ones(1 << 20 if device == "cpu" else 1 << 26, device=device)
    out = torch.empty_like(long)
    one = torch.ones(1, device=device)
    product = _seconds(lambda: square @ square, device)
    passing = _seconds(lambda: torch.mul(long, long, out=out), device)
    call = _seconds(lambda: one + one, device)
    return Rates(
        products=_rounded(size**3 / product, typical.products),
        traffic=_rounded(3 * long.nbytes / passing, typical.traffic),
        call=_rounded(call * 3, typical.call),
    )


def _rounded(value: float, typical: float) -> float:
    return typical * 4.0 ** round(math.log(value / typical, 4))


def _seconds(work: Callable[[], Tensor], device: str) -> float:
    """Give the shortest of a few runs: the others were disturbed."""
    shortest = math.inf
    for _ in range(4):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        shortest = min(shortest, time.perf_counter() - started)
    return max(shortest, 1e-9)
