"""Run a function on several ranks, each a process of its own, and look after the processes."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# The server imports once; its children are forked from it in milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["gafscope.trainer", "sklearn.datasets", "pandas", "pyarrow.parquet", "torch._dynamo"]
)
PATIENCE = 500.0


class Job:
    """Ranks at work. `work(rank, *arguments)` runs on each; it must be a module's function."""

    def __init__(self, work: Callable[..., Any], ranks: int, *arguments: Any, timeout: float = 60):
        # Here, so that it outlives every rank, as torchrun's does.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes, self._pipes = [], []
        self._said = tempfile.NamedTemporaryFile("r")  # noqa: SIM115 (as long as the job)
        for rank in range(ranks):
            mine, theirs = _CONTEXT.Pipe(duplex=False)
            place = (rank, ranks, self._store.port, timeout)
            process = _CONTEXT.Process(
                target=_run, args=(theirs, place, self._said.name, work, arguments)
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(mine)

    def results(self) -> list[Any]:
        """Wait for all, and give what each returned, or the text of what it raised."""
        answers: dict[int, Any] = {}
        end = time.monotonic() + PATIENCE
        try:
            while len(answers) < len(self._pipes):
                waiting = [pipe for i, pipe in enumerate(self._pipes) if i not in answers]
                ready = multiprocessing.connection.wait(waiting, max(end - time.monotonic(), 0))
                assert ready, "some ranks are still at work"
                for pipe in ready:
                    answers[self._pipes.index(pipe)] = _received(pipe)
            for process in self.processes:
                process.join(max(end - time.monotonic(), 0))
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        return [answers[rank] for rank in range(len(answers))]

    def said(self) -> str:
        """Give what the ranks have written to the standard error."""
        return Path(self._said.name).read_text()


def run_ranks(work: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """Run a function on ranks; none may fail."""
    found = Job(work, ranks, *arguments).results()
    for rank, one in enumerate(found):
        assert not isinstance(one, str), f"rank {rank}:\n{one}"
    return found


def _received(pipe: Any) -> Any:
    try:
        content = pipe.recv()
    except EOFError:
        return "ended without a word"
    if isinstance(content, str):
        return content
    return torch.load(io.BytesIO(content), weights_only=False)


def _run(pipe: Any, place: tuple[int, ...], said: str, work: Any, arguments: Any) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    rank, ranks, port, timeout = place
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        patience = timedelta(seconds=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=patience)
        content = io.BytesIO()
        torch.save(work(rank, *arguments), content)
        pipe.send(content.getvalue())
    except BaseException:
        pipe.send(traceback.format_exc())
    finally:
        pipe.close()
        dist.destroy_process_group()
        # What a test leaves in the process must not delay its end.
        os._exit(0)
