"""Peak memory of a call, exactly: a running sum over what torch's allocator hands out and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch


def peak_extra_bytes(call: Callable[[], Any], device: str) -> int:
    """Measure the most memory that a call holds at once, beyond what was there before it.

    On CUDA this is `max_memory_allocated` above `memory_allocated`. On the CPU the profiler
    reports every allocation and release of torch's allocator in order; the result is the highest
    point of their running sum. The release of what was there before is not seen, so that a call
    should leave that alone. Buffers inside oneDNN and BLAS calls are not torch's and do not
    count; nor do pages that the process keeps for later, which makes the peak resident size, the
    other way to measure, depend on what ran before.

    Args:
        call: What is measured; its result is dropped.
        device: "cpu" or "cuda".

    Returns:
        Bytes.
    """
    if device == "cuda":
        return _cuda_peak(call)
    # The profiler that goes by "legacy": the newer one writes lines of its own to standard error.
    profiler: Any = torch.autograd
    experimental = cast(Any, torch._C)._profiler._ExperimentalConfig()
    options = (profiler.ProfilerState.CPU, False, True, False, False, False, experimental)
    profiler._enable_profiler_legacy(profiler.ProfilerConfig(*options))
    try:
        call()
    finally:
        threads = profiler._disable_profiler_legacy()
    held = peak = 0
    for event in (event for thread in threads for event in thread):
        if event.kind() == "memory_alloc":
            held += event.cpu_memory_usage()
            peak = max(peak, held)
    return peak


def _cuda_peak(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
