"""Peak memory: exact on what is known."""

from __future__ import annotations

import pytest
import torch

from gafscope.analyses.cost_memory import peak_extra_bytes

MEGABYTE = 10**6


def four_then_ten() -> torch.Tensor:
    first = torch.empty(MEGABYTE)  # 4 MB
    second = torch.empty(MEGABYTE // 2)  # 6 MB held
    del first
    third = torch.empty(2 * MEGABYTE)  # 10 MB held
    return second[:1] + third[:1]


def test_known_allocations_on_the_cpu():
    assert peak_extra_bytes(four_then_ten, "cpu") == 10 * MEGABYTE + 4  # and one number, the sum


def test_what_was_there_before_does_not_count():
    held = torch.empty(3 * MEGABYTE)
    assert peak_extra_bytes(lambda: held[:100].clone(), "cpu") == 400


def test_a_forward_and_backward():
    n = MEGABYTE
    x = torch.zeros(n, requires_grad=True)

    def call() -> None:
        torch.autograd.grad(x.exp().sum(), x)

    # exp keeps its output for the backward, which makes the gradient beside it.
    assert 8 * n <= peak_extra_bytes(call, "cpu") < 8 * n + 1000


def test_a_call_that_fails_leaves_the_profiler_off():
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        peak_extra_bytes(fail, "cpu")
    assert peak_extra_bytes(lambda: torch.empty(100), "cpu") == 400


@pytest.mark.cuda
def test_known_allocations_on_a_gpu():
    held = torch.empty(MEGABYTE, device="cuda")
    peak = peak_extra_bytes(lambda: torch.empty(2 * MEGABYTE, device="cuda"), "cuda")
    assert 8 * MEGABYTE <= peak < 8 * MEGABYTE + 2**21  # CUDA's blocks are rounded up
    del held
