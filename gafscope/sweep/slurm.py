"""Workers as Slurm jobs, through submitit."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from gafscope.errors import UserError
from gafscope.sweep.points import settled
from gafscope.sweep.queue import Queue
from gafscope.sweep.recipe import Recipe
from gafscope.sweep.worker import new_worker_name, work

_GENTLY, _LOOK = 10.0, 0.2  # seconds
# submitit's own options; all others are Slurm's, which it takes with this prefix.
_PREFIX = "slurm_"
_SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
_PREFIXED = ("slurm_", "local_", "debug_")


@final
class SlurmWorker:
    """What a job runs; submitit queues it again when Slurm preempts it or its time is over.

    Args:
        recipe: The sweep.
        number: Which worker it is.
    """

    def __init__(self, recipe: Recipe, number: int):
        self._recipe, self._number = recipe, number

    def __call__(self) -> None:
        """Work until the sweep is settled."""
        work(self._recipe, new_worker_name(), self._number)

    def checkpoint(self) -> Any:
        """Begin anew: what was trained is in the trials' folders, the rest in the storage."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@final
class SlurmJobs:
    """Workers that are Slurm jobs, one each.

    Args:
        recipe: The sweep; its `slurm` holds the options: `partition`, `time` (minutes), `gpus` ...
            as Slurm names them. `cluster: local` runs the jobs on this machine.
        queue: The queue.

    Raises:
        UserError: If submitit is not installed, there is no Slurm, or it refuses an option.
    """

    def __init__(self, recipe: Recipe, queue: Queue):
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "Workers on Slurm need submitit, which is not installed: pip install "
                "'gafscope[sweep]'."
            ) from error
        self._queue = queue
        options = dict(recipe.slurm)
        cluster = str(options.pop("cluster", "slurm"))
        # Jobs run elsewhere: paths that depend on the current folder would lead nowhere.
        recipe = replace(recipe, folder=str(Path(recipe.folder).resolve()))
        try:
            executor = submitit.AutoExecutor(str(Path(recipe.folder) / "slurm"), cluster=cluster)
            executor.update_parameters(**_parameters(options, recipe.name))
            with executor.batch():
                self._jobs = [
                    executor.submit(SlurmWorker(recipe, number))
                    for number in range(recipe.worker_count)
                ]
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"Slurm did not take the jobs: {reason}. Check the options under 'slurm'; "
                "cluster=local tries the same without Slurm."
            ) from error

    def tend(self, progressed: bool) -> bool:
        """Tell whether any job is left; one that died is for Slurm, or the next start, to replace.

        Args:
            progressed: Not needed here.
        """
        return any(not job.done() for job in self._jobs)

    def stop(self) -> None:
        """Cancel the jobs: Slurm sends SIGTERM, and they give their trials back.

        Those of a sweep that is settled end by themselves, and are waited for.
        """
        until = time.monotonic() + _GENTLY
        while self.tend(False) and time.monotonic() < until:
            if not all(map(settled, self._queue.trials().values())):
                break
            time.sleep(_LOOK)
        for job in self._jobs:
            if not job.done():
                job.cancel(check=False)


def _parameters(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Translate Slurm's names into submitit's."""
    parameters: dict[str, Any] = {"name": name, "timeout_min": 60}
    for key, value in options.items():
        if key == "time":
            parameters["timeout_min"] = value
        elif key in _SHARED or key.startswith(_PREFIXED):
            parameters[key] = value
        else:
            parameters[_PREFIX + key] = value
    return parameters
