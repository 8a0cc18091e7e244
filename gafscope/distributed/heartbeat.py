# pyright: reportPrivateImportUsage=false
"""Who is alive and how far: a thread on each rank writes it to the store, and reads the others'.

A collective waits in silence for a rank that is stopped, slow or gone. Here each rank says how far
it is; a rank that holds up the others for too long, or an error on any rank, ends all of them,
with one message from the lowest rank that is alive.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, final

import torch.distributed as dist

from gafscope.distributed.board import Board
from gafscope.errors import UserError

_EVERY = 0.4
# Beats that a rank may miss before it counts as gone.
_MISSED = 4
# Seconds in which a rank that knows of the end must come to it by itself.
_GRACE = 5.0


@final
class Heartbeat:
    """Watches over the ranks of a job. One a process, like the process group.

    Args:
        store: Where the ranks can leave word for each other.
        rank: The own rank.
        ranks: Their number.
        timeout: Seconds after which a rank that holds up the others ends the job.

    Attributes:
        current: The one that beats in this process, if one does.
    """

    current: ClassVar[Heartbeat | None] = None
    _made: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, store: Any, rank: int, ranks: int, timeout: float):
        self.timeout = timeout
        self._rank = rank
        # A connection of its own: another thread may be waiting on the first one.
        # What was said in an earlier run of this process is not for this one.
        self._store: Any = dist.PrefixStore(f"gafscope/{next(self._made)}", store.clone())
        self._store.set_timeout(timedelta(seconds=max(timeout, _GRACE)))
        self._board = Board(rank, ranks)
        self._every = _EVERY * max(1.0, ranks / 64)
        self._mine: str | None = None
        self._error: str | None = None
        self._since = 0.0
        self._told = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        Heartbeat.current = self

    def arrive(self, step: int) -> None:
        """Say that this rank is at the collectives of a step, where it may have to wait.

        Args:
            step: The step.

        Raises:
            UserError: If the job is to end.
        """
        self._board.arrive(step)
        if self._error is not None:
            raise UserError(self._error)

    def explain(self) -> str:
        """Say why a collective has failed: what another rank told, or which one is gone."""
        # A rank is known to be gone only when it has missed its beats.
        deadline = time.monotonic() + self._every * (_MISSED + 2)
        while self._error is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._error is not None:
            return self._error
        gone = self._board.silent(self._every * _MISSED)
        which = ", ".join(f"rank {rank} (last step {step})" for rank, step in gone)
        return (
            f"The connection to another rank was lost; {which or 'it'} has gone. Every rank ends; "
            "the same command goes on from the last checkpoint (torchrun --max-restarts does so)."
        )

    def fail(self, message: str) -> None:
        """Tell all ranks that the job ends, and wait until one of them has told the user.

        Args:
            message: Why.
        """
        self._mine = message
        if self._told.is_set() and self._error is None:
            print(f"gafscope: {message}", file=sys.__stderr__, flush=True)
        self._post("error", {"message": message, "rank": self._rank})
        # A rank that has not begun to beat is awaited: it may be the one that speaks.
        self._told.wait(max(self.timeout, _GRACE))

    def tell(self, message: str) -> None:
        """Let rank 0 write a message, and the others wait until it is written.

        Args:
            message: The same on every rank; nothing for one that is already written.
        """
        if self._rank == 0:
            self._speak(message)
        self._told.wait(_GRACE)

    def stop(self) -> None:
        """Stop to watch; from now on nobody waits for this rank."""
        self._stopped.set()
        self._thread.join(_GRACE)
        if Heartbeat.current is self:
            Heartbeat.current = None

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(self._every):
            now = time.monotonic()
            if now - last > self._every * _MISSED:
                # This rank itself was stopped; what it knows of the others is old.
                self._board.forgive()
            last = now
            try:
                self._beat()
            except RuntimeError:
                # The store has gone with its process, and with it all means to agree.
                self._told.set()
                return
        with _suppressed():
            self._store.set(f"beat/{self._rank}", Board.DONE)

    def _beat(self) -> None:
        self._store.set(f"beat/{self._rank}", self._board.own())
        keys = {f"beat/{rank}": rank for rank in self._board.others}
        there = [key for key in keys if self._board.seen(keys[key]) or self._store.check([key])]
        for key, value in zip(there, self._read(there), strict=True):
            self._board.note(keys[key], value.decode())
        if self._error is None and not self._store.check(["error"]):
            verdict = self._board.verdict(self.timeout)
            if verdict is None:
                return
            self._post("error", {"message": verdict, "rank": self._rank})
        self._end()

    def _read(self, keys: list[str]) -> list[bytes]:
        if keys and self._store.has_extended_api():
            return self._store.multi_get(keys)
        return [self._store.get(key) for key in keys]

    def _end(self) -> None:
        """The job ends: speak, if it is on this rank to, and see that it does end."""
        now = time.monotonic()
        if self._error is None:
            self._since = now
            self._error = json.loads(self._store.get("error"))["message"]
        if self._store.check(["told"]):
            self._told.set()
        waited = now - self._since
        # An error of its own may be on its way here; it says more than that of another rank.
        ready = self._mine is not None or waited >= 2 * self._every
        speaks = self._board.lowest_alive(self._every * _MISSED, self.timeout)
        if not self._told.is_set() and ready and (speaks or waited > _GRACE):
            self._speak(self._mine or self._error or "")
        if self._told.is_set() and waited > 2 * _GRACE and not self._stopped.is_set():
            os._exit(2)  # it hangs in a collective that nothing else ends

    def _speak(self, message: str) -> None:
        mine = str(self._rank)
        if self._store.compare_set("speaker", "", mine).decode() == mine and message:
            print(f"gafscope: {message}", file=sys.__stderr__, flush=True)
        with _suppressed():
            self._store.set("told", "yes")
        self._told.set()

    def _post(self, key: str, word: dict[str, Any]) -> None:
        """Leave word, unless there is one already."""
        with _suppressed():
            self._store.compare_set(key, "", json.dumps(word))


@contextmanager
def beating(timeout: float) -> Iterator[None]:
    """Let the ranks of the default process group watch over each other, if nobody does yet.

    An error inside ends all ranks.

    Args:
        timeout: Seconds after which a rank that holds up the others ends the job.
    """
    if Heartbeat.current is not None:
        yield
        return
    # The only way to the store that the process group was made with.
    store = dist.distributed_c10d._get_default_store()
    heart = Heartbeat(store, dist.get_rank(), dist.get_world_size(), timeout)
    try:
        yield
    except Exception as error:
        known = isinstance(error, UserError)
        heart.fail(str(error) if known else f"Rank {dist.get_rank()} failed with {error!r}")
        raise
    finally:
        heart.stop()


@contextmanager
def _suppressed() -> Iterator[None]:
    """What is said to a store that has gone is lost."""
    try:
        yield
    except RuntimeError:
        return
