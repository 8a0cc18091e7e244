"""Run a function on several ranks, each a process of its own, joined by gloo."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

# The server imports once, what torch imports at its first step too; its children are forked from
# it in milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", "gafscope.distributed.distribute"])
TIMEOUT = 500.0


def run_ranks(job: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """Call `job(rank, ranks, *arguments)` on every rank of a gloo group.

    The job must be a function of a module. The results come back in the order of the ranks; what
    a rank raises is raised here, with its traceback.
    """
    with TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            mine, theirs = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_work, args=(theirs, job, rank, ranks, f"{folder}/store", arguments)
            )
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        try:
            return _collect(pipes, ranks)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()


def _collect(pipes: list[Any], ranks: int) -> list[Any]:
    end, answers = time.monotonic() + TIMEOUT, {}
    while len(answers) < ranks:
        waiting = [pipe for i, pipe in enumerate(pipes) if i not in answers]
        ready = multiprocessing.connection.wait(waiting, max(end - time.monotonic(), 0))
        assert ready, f"ranks {sorted(set(range(ranks)) - answers.keys())} are still at work"
        for pipe in ready:
            failed, content = pipe.recv()
            assert not failed, f"rank {pipes.index(pipe)}:\n{content}"
            answers[pipes.index(pipe)] = torch.load(io.BytesIO(content), weights_only=False)
    return [answers[rank] for rank in range(ranks)]


def _work(pipe: Any, job: Any, rank: int, ranks: int, store: str, arguments: Any) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{Path(store)}", rank=rank, world_size=ranks
        )
        content = io.BytesIO()
        torch.save(job(rank, ranks, *arguments), content)
        pipe.send((False, content.getvalue()))
    except BaseException:
        pipe.send((True, traceback.format_exc()))
    finally:
        pipe.close()
        dist.destroy_process_group()
