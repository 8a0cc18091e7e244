"""Endless macrobatches that a resumed run finds again exactly where they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch

from gafscope.errors import UserError

_END = object()


@final
class Batches(Iterator[Any]):
    """Macrobatches of a source, which is started anew when it ends.

    While the source is drawn from, torch's global generator is in a state of its own. So what
    dropout draws does not change which samples `DataLoader(shuffle=True)` gives, and winding a
    new one forward gives the samples of the first time again.

    Args:
        source: Any iterable. One that has `state_dict` and `load_state_dict` (as
            `MicrobatchSampler` has) keeps its own place; any other is wound forward.
        seed: Seed of the source's draws from the global generator.
    """

    def __init__(self, source: Iterable[Any], seed: int):
        self._source = source
        self._iterator: Iterator[Any] | None = None
        # Not the stream of dropout itself, which starts from the same seed.
        own = int(torch.randint(1 << 40, (), generator=torch.Generator().manual_seed(seed)))
        self._random = torch.Generator().manual_seed(own).get_state()
        self._keeps_place = hasattr(source, "state_dict") and hasattr(source, "load_state_dict")

    def wind(self, steps: int) -> None:
        """Pass over the macrobatches of the steps that are done, unless the source knows its place.

        Args:
            steps: Steps done.
        """
        for _ in range(0 if self._keeps_place else steps):
            next(self)

    def __next__(self) -> Any:
        others = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            return self._draw()
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(others)

    def state_dict(self) -> dict[str, Any]:
        """Give the source's own state, if it has one, for a checkpoint."""
        if not self._keeps_place:
            return {}
        source: Any = self._source
        return {"source": source.state_dict(), "random": self._random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a source that knows its place there.

        Args:
            state: What `state_dict` gave.

        Raises:
            UserError: If one of the two sources knew its place and the other does not.
        """
        if bool(state) != self._keeps_place:
            raise UserError(
                f"The run was trained on {_kind(bool(state))}, but train_batches is now "
                f"{_kind(self._keeps_place)}: give it macrobatches of the kind it was made with."
            )
        if state:
            source: Any = self._source
            source.load_state_dict(state["source"])
            self._random = state["random"]

    def _draw(self) -> Any:
        if self._iterator is not None:
            batch = next(self._iterator, _END)
            if batch is not _END:
                return batch
        spent = self._iterator is not None
        self._iterator = iter(self._source)
        batch = next(self._iterator, _END)
        if batch is _END:
            raise UserError(
                "train_batches has ended and gives nothing when it is started anew, as a generator "
                "does; use a list, a DataLoader, a MicrobatchSampler or an endless iterator."
                if spent
                else "train_batches holds no macrobatch at all; give at least one."
            )
        return batch


def _kind(keeps_place: bool) -> str:
    return f"macrobatches {'with' if keeps_place else 'without'} a state_dict of their own"
