"""Checkpoints are written by a thread, from a copy, while the next steps are made."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def detached_copy(state: Any) -> Any:
    """Copy a state so that later steps do not change it.

    Args:
        state: Tensors, numbers, strings and containers of these.

    Returns:
        The same on the CPU. Tensors that are one (tied weights) stay one.
    """
    known: dict[Any, Tensor] = {}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return copy.deepcopy(leaf)
        key = (leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride(), leaf.device)
        if leaf.numel() == 0 or key not in known:
            known[key] = leaf.detach().to("cpu", copy=True)
        return known[key]

    with torch.no_grad():
        return pytree.tree_map(copied, state)


@final
class Background:
    """Does one piece of work at a time in a thread; its error surfaces in the caller."""

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start a piece of work, after waiting for the one before.

        Args:
            work: What to do.

        Raises:
            BaseException: What the work before raised.
        """
        self.wait()
        # No daemon: Python waits for it at exit, so that nothing is left half done.
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of work that has failed; do not wait for work that goes on."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the work, and raise its error if it has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
