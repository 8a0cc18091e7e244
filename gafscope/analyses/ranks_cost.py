"""What agreement costs beside plain DistributedDataParallel, measured on this machine's loopback.

Both replicas live in the same processes and take turns, step by step, so that whatever else the
machine does falls on both. Bytes are those that the loopback counted, headers included.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gafscope.aggregation import GAF
from gafscope.distributed.distribute import distribute
from gafscope.errors import UserError
from gafscope.models import mlp, resnet18

_LOOPBACK = Path("/proc/net/dev")
_IMAGE = (3, 32, 32)


@final
@dataclass(frozen=True)
class RanksCost:
    """Medians over the turns of one comparison; of each turn the rank that took the most.

    Attributes:
        ranks: K.
        numbers: P, trainable numbers of the model.
        plain_seconds: Of a step of plain DDP.
        agreed_seconds: Of a step that GAF decides.
        plain_processor: Processor seconds that a rank spends in a step of plain DDP.
        agreed_processor: The same for a step that GAF decides. With fewer free cores than ranks
            these tell more than the clock.
        plain_bytes: That a rank sends in a step of plain DDP; NaN where nothing counts them.
        agreed_bytes: The same for a step that GAF decides.
        plain_memory: Peak of a rank's resident memory, in bytes, where only plain DDP ran.
        agreed_memory: The same where only the loop that GAF decides ran.
    """

    ranks: int
    numbers: int
    plain_seconds: float
    agreed_seconds: float
    plain_processor: float
    agreed_processor: float
    plain_bytes: float
    agreed_bytes: float
    plain_memory: float
    agreed_memory: float


@final
@dataclass(frozen=True)
class _Turn:
    """What one step took."""

    seconds: float
    processor: float
    sent: float


@final
@dataclass(frozen=True)
class _Job:
    """What each rank does: the loops named, in turns."""

    ranks: int
    model: str
    microbatch: int
    steps: int
    agreed: tuple[bool, ...]


def measure_ranks(
    ranks: int, model: str = "resnet18", microbatch: int = 4, steps: int = 9
) -> RanksCost:
    """Measure steps of a plain DDP loop and of one that `distribute` decides, in turns.

    Args:
        ranks: K, processes that this starts on this machine, one thread each, joined by gloo.
        model: "resnet18" (11.2 million numbers, 32 x 32 images) or "mlp" (10.9 million).
        microbatch: Samples of a rank.
        steps: Turns that are measured, after two that are not.

    Returns:
        The medians.

    Raises:
        UserError: If there are fewer than two ranks, no turn, or no such model.
    """
    if ranks < 2 or steps < 1:
        raise UserError(f"It takes 2 ranks and 1 step at least, but these are {ranks} and {steps}.")
    _network(model)
    turns, _, numbers = _run(_Job(ranks, model, microbatch, steps, (False, True)))
    _, plain, _ = _run(_Job(ranks, model, microbatch, 1, (False,)))
    _, agreed, _ = _run(_Job(ranks, model, microbatch, 1, (True,)))

    def medians(field: str, over: int = 1) -> list[float]:
        return [statistics.median(getattr(one, field) / over for one in loop) for loop in turns]

    times = [*medians("seconds"), *medians("processor"), *medians("sent", over=ranks)]
    return RanksCost(ranks, numbers, *times, plain_memory=plain, agreed_memory=agreed)


def _run(job: _Job) -> tuple[list[list[_Turn]], float, int]:
    """Give the turns of each loop, the largest peak of memory, and P."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(job.ranks):
            mine, theirs = context.Pipe(duplex=False)
            arguments = (theirs, rank, f"{folder}/store", job)
            processes.append(context.Process(target=_work, args=arguments))
            processes[-1].start()
            theirs.close()
            pipes.append(mine)
        found = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
    turns = [
        [_most([loops[which][i] for loops, *_ in found]) for i in range(job.steps)]
        for which in range(len(job.agreed))
    ]
    return turns, max(peak for _, peak, _ in found), found[0][2]


def _most(turns: list[_Turn]) -> _Turn:
    return _Turn(
        max(turn.seconds for turn in turns),
        max(turn.processor for turn in turns),
        max(turn.sent for turn in turns),
    )


def _work(pipe: Any, rank: int, store: str, job: _Job) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=job.ranks)
    loops = [_loop(job.model, job.microbatch, rank, agreed) for agreed in job.agreed]
    turns: list[list[_Turn]] = [[] for _ in loops]
    for i in range(job.steps + 2):
        for (step, _), own in zip(loops, turns, strict=True):
            dist.barrier()
            sent, start, processor = _loopback_bytes(), time.perf_counter(), time.process_time()
            step()
            spent, processor = time.perf_counter() - start, time.process_time() - processor
            dist.barrier()
            if i > 1:
                own.append(_Turn(spent, processor, _loopback_bytes() - sent))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    pipe.send((turns, peak, loops[0][1]))
    pipe.close()
    dist.barrier()
    dist.destroy_process_group()


def _loop(model: str, microbatch: int, rank: int, agreed: bool) -> tuple[Callable[[], None], int]:
    torch.manual_seed(0)
    wrapped = DistributedDataParallel(_network(model))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01, momentum=0.9)
    if agreed:
        distribute(wrapped, optimizer, GAF(tau=2.0), check_every=None)
    generator = torch.Generator().manual_seed(rank)
    inputs = torch.randn(microbatch, *_IMAGE, generator=generator)
    labels = torch.randint(100, (microbatch,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(inputs), labels).backward()
        optimizer.step()

    return step, sum(parameter.numel() for parameter in wrapped.parameters())


def _network(name: str) -> nn.Module:
    if name == "resnet18":
        return resnet18(num_classes=100, stem="cifar")
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), mlp(3072, (2200, 1800), 100))
    raise UserError(f"model must be 'resnet18' or 'mlp', but is {name!r}.")


def _loopback_bytes() -> float:
    """Bytes that all processes of this machine have sent over the loopback so far."""
    if not _LOOPBACK.exists():
        return float("nan")
    (line,) = (one for one in _LOOPBACK.read_text().splitlines() if one.strip().startswith("lo:"))
    return float(line.split()[9])
