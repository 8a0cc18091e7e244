# pyright: reportPrivateImportUsage=false
"""A command that torchrun starts several times: one process group, one voice, one ending."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import final

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gafscope.distributed.heartbeat import Heartbeat
from gafscope.errors import UserError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Until the settings are read.
_FIRST_TIMEOUT = 120.0
_TERMINATED = 128 + signal.SIGTERM
_WORDS = {2: "", 130: "interrupted", _TERMINATED: "terminated"}

log = logging.getLogger("gafscope")


@final
class Told(SystemExit):
    """The end of a rank, when the user has been told why."""


@final
class Launch:
    """This process as one rank of a job.

    Attributes:
        rank: The rank, from 0.
        ranks: How many there are.
        heartbeat: Watches over the others.
    """

    def __init__(self):
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._local = int(os.environ.get("LOCAL_RANK", "0"))
        seconds = timedelta(seconds=_FIRST_TIMEOUT)
        store, _, _ = next(iter(rendezvous("env://", timeout=seconds)))
        # A restarted job must not read what was said before.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"gafscope/{attempt}", store)
        self.heartbeat = Heartbeat(self._store, self.rank, self.ranks, _FIRST_TIMEOUT)

    def connect(self, device: str, timeout: float) -> str:
        """Join the process group.

        Args:
            device: Where the run is asked to be: "auto", "cpu", "cuda" ...
            timeout: Seconds after which a rank that holds up the others ends the job.

        Returns:
            The device of this rank.

        Raises:
            UserError: If the machine has too few GPUs.
        """
        if not timeout > 0:
            raise UserError(f"rank_timeout must be positive, in seconds, but is {timeout}.")
        place = _own_device(device, self._local)
        self.heartbeat.timeout = timeout
        # A little later than the heartbeat, which knows which rank it is.
        patience = timedelta(seconds=timeout + 5)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if place.startswith("cuda") else "gloo",
            store=dist.PrefixStore("group", self._store),
            rank=self.rank,
            world_size=self.ranks,
            timeout=patience,
        )
        return place


def launched() -> bool:
    """Tell whether torchrun, or whoever sets the same variables, has started this process."""
    return dist.is_available() and all(name in os.environ for name in _VARIABLES)


@contextmanager
def launch() -> Iterator[Launch | None]:
    """Run a command as one rank of a job, if torchrun has started it.

    Only rank 0 prints. An error on any rank ends all of them: one rank says why, and no rank ends
    before that is said, since the launcher ends all as soon as it sees one end.

    Yields:
        The rank; None for a process of its own.

    Raises:
        UserError: If torchrun was to start one process only.
        Told: In place of an error or a signal that the user has been told of.
    """
    if not launched():
        yield None
        return
    if os.environ["WORLD_SIZE"] == "1":
        raise UserError(
            "torchrun was started with one process, which has no other to share its microbatches "
            "with; give --nproc-per-node=2 or more, or run `python -m gafscope` without torchrun."
        )
    rank = Launch()
    try:
        with _one_voice(rank.rank):
            yield rank
    except UserError as error:
        rank.heartbeat.fail(str(error))
        raise Told(2) from error
    except KeyboardInterrupt as error:
        raise _ended(rank, 130) from error
    except SystemExit as end:
        if end.code not in _WORDS:
            raise
        raise _ended(rank, end.code) from end
    except Exception as error:
        # The traceback follows on this rank.
        rank.heartbeat.fail(f"Rank {rank.rank} failed with {type(error).__name__}: {error}")
        raise
    finally:
        rank.heartbeat.stop()
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _one_voice(rank: int) -> Iterator[None]:
    """Silence all but rank 0."""
    if rank == 0:
        yield
        return
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with ExitStack() as stack:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
            yield
    finally:
        log.setLevel(level)


def _ended(rank: Launch, code: int | str | None) -> Told:
    assert isinstance(code, int)
    word = _WORDS[code]
    rank.heartbeat.tell(
        f"{word}; what was done is kept. The same command goes on from there." if word else ""
    )
    return Told(code)


def _own_device(name: str, local: int) -> str:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return name
    count = torch.cuda.device_count()
    if local >= count:
        raise UserError(
            f"Every rank needs a GPU of its own, but local rank {local} finds {count} on this "
            "machine; start fewer ranks (--nproc-per-node), or give --device cpu."
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"
