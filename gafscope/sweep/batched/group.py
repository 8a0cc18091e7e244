"""Training a group of trials of one shape.

Every trial has the trainer, the sampler, the record and the checkpoints that it has alone; only the
gradients, the inner products, the updates and the validations are computed for all at once. So a
group that was interrupted goes on from its trials' own checkpoints, together or one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from gafscope.gradients import microbatch_gradients
from gafscope.records import Run, load_run
from gafscope.records.folder import SUMMARY
from gafscope.sweep.batched.lockstep import Lockstep, make_stack, piled
from gafscope.sweep.batched.member import Member, assemble_member, open_member
from gafscope.trainer import TrainSettings
from gafscope.trainer.job import Job
from gafscope.trainer.summary import summarize
from gafscope.trainer.train import run_folder, using_threads

# Bytes that the data and the micro-gradients of a group may take.
_ROOM = 2_000_000_000
_REPEATS = 3


def train_batched(settings: Sequence[TrainSettings], name: str) -> list[Run | Exception]:
    """Train the first trials of a list together, as many as there is room for.

    Args:
        settings: Trials with one `batch_key`, each with a folder of its own.
        name: What stands before the progress bar.

    Returns:
        A run or an error for each of the first trials; nothing where training one by one is
        measured to be faster.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after checkpoints were written; SystemExit on SIGTERM.
    """
    with using_threads(settings[0].threads):
        first = assemble_member(settings[0], name)
        if isinstance(first, Exception):
            return [first]
        count = min(len(settings), _room_for(first))
        if count < 2 or not _is_faster(first, count):
            return []
        jobs = [first, *(assemble_member(one, name) for one in settings[1:count])]
        outcomes: list[Member | Exception] = []
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with ExitStack() as stack, torch.random.fork_rng(devices=devices):
            for one, job in zip(settings, jobs, strict=False):
                outcomes.append(job if isinstance(job, Exception) else open_member(one, job, stack))
            members = [outcome for outcome in outcomes if isinstance(outcome, Member)]
            _train(members, name)
            for member in members:
                _summarize(member)
        return [_run_of(outcome) for outcome in outcomes]


def _train(members: Sequence[Member], name: str) -> None:
    """Train until all have ended; those that stand at one step go on together."""
    while going := [member for member in members if not member.ended]:
        # A kill in the middle of writing checkpoints leaves some behind the others.
        stands = sorted({member.job.trainer.step for member in going})
        last = [member for member in going if member.job.trainer.step == stands[0]]
        until = stands[1] if len(stands) > 1 else last[0].settings.steps
        Lockstep(last, name).run(until)


def _summarize(member: Member) -> None:
    if member.error is not None or (run_folder(member.settings) / SUMMARY).exists():
        return
    dataset, writer = member.job.dataset, member.session.writer
    assert writer is not None
    writer.summary(summarize(member.job.trainer, dataset.validation.batch(), dataset.test.batch()))


def _run_of(outcome: Member | Exception) -> Run | Exception:
    if isinstance(outcome, Exception):
        return outcome
    return outcome.error or load_run(run_folder(outcome.settings))


def _room_for(job: Job) -> int:
    """Tell how many trials like this one fit into memory."""
    split, trainer = job.dataset.train, job.trainer
    data = split.inputs.numel() * split.inputs.element_size()
    numbers = sum(parameter.numel() for parameter in trainer.parameters.values())
    rows = numbers * job.batches.microbatches * 12  # float32 and float64
    return _ROOM // max(data + rows, 1)


def _is_faster(job: Job, count: int) -> bool:
    """Measure the gradients of a macrobatch, `count` times one by one and once together."""
    trainer, sampler = job.trainer, job.batches
    k, u = sampler.microbatches, sampler.microbatch_size
    batch = job.dataset.train.batch(torch.arange(k * u))
    stack = make_stack([job] * count)
    inputs, targets = (piled([part] * count, k) for part in batch)

    def alone() -> None:
        microbatch_gradients(trainer.model, trainer.loss, batch, microbatches=k, engine="loop")

    together = _seconds(lambda: stack.gradients(inputs, targets), trainer.device)
    return together < count * _seconds(alone, trainer.device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time some work; on a CPU in seconds of its own, which other processes do not lengthen."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(1 + _REPEATS):  # the first one warms up
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - started)
    return min(times[1:])
