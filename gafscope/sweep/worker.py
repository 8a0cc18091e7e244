"""A worker: claims trials, trains them, and settles them, until the whole sweep is settled."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from gafscope.records import Run
from gafscope.records.acceptance import accepted_fraction
from gafscope.sweep.batched import batch_key
from gafscope.sweep.locks import locked
from gafscope.sweep.points import settled
from gafscope.sweep.queue import Claim, Queue
from gafscope.sweep.recipe import Recipe
from gafscope.sweep.runs import Outcome, outcomes_of
from gafscope.trainer import TrainSettings
from gafscope.trainer.train import run_config

log = logging.getLogger("gafscope")
_POLL = 1.0
_NUMBERS = (
    "status",
    "steps",
    "updates",
    "validation_accuracy",
    "validation_loss",
    "test_accuracy",
    "test_loss",
    "best_step",
    "best_validation_accuracy",
    "best_validation_loss",
    "best_test_accuracy",
    "best_test_loss",
)


def new_worker_name() -> str:
    """Make a name that no other worker has, on whatever machine."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def work(recipe: Recipe, worker: str, number: int) -> None:
    """Run trials until none is left anywhere.

    Trials that wait for nobody, but run elsewhere, are waited for: their workers may die.

    Args:
        recipe: The sweep.
        worker: The worker's own name.
        number: Which worker of this machine it is.

    Raises:
        UserError: If the storage cannot be used.
        KeyboardInterrupt: On Ctrl-C or SIGTERM; checkpoints are written and trials given back.
    """
    with _terminate_gently():
        queue = Queue(recipe, worker, number)
        while True:
            with Pulse(queue, recipe.heartbeat) as pulse:
                claims = _claim(queue, recipe, pulse)
                if claims:
                    _run(queue, recipe, pulse, claims, _device(recipe, number))
                    continue
            if all(map(settled, queue.trials().values())):
                return
            time.sleep(_POLL)


@final
class Pulse:
    """Gives signs of life of the trials that a worker holds; gives back what is left at its end.

    Args:
        queue: The queue.
        interval: Seconds between two of them.
    """

    def __init__(self, queue: Queue, interval: float):
        self._queue, self._interval = queue, interval
        self._held: list[Claim] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def hold(self, claims: Sequence[Claim]) -> None:
        """Begin with these trials."""
        self._held += claims

    def drop(self, claim: Claim) -> None:
        """End with a trial that is settled."""
        self._held.remove(claim)

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            for claim in list(self._held):
                try:
                    self._queue.beat(claim)
                except Exception as error:
                    # A database that is away for a moment costs one sign of life, not the trial.
                    log.warning("No sign of life of trial %d: %s", claim.number, error)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for claim in self._held:
            self._queue.release(claim)


def trial_settings(
    recipe: Recipe, claim: Claim, settings: TrainSettings, device: str | None
) -> TrainSettings:
    """Give a run its folder, the same whenever and wherever it is run again.

    Args:
        recipe: The sweep.
        claim: The trial.
        settings: One of its runs.
        device: Where it runs; None for torch's choice.

    Returns:
        The settings, ready to be trained.
    """
    words = "-".join(f"{key.split('.')[-1]}{value}" for key, value in claim.values.items())
    slug = re.sub(r"[^\w.-]+", "", words)[:80]
    # A setting that is refused has no config; it is refused again, with its message, when it runs.
    try:
        config = json.dumps(run_config(settings), sort_keys=True)
    except ValueError:
        config = repr(settings)
    digest = hashlib.sha256(config.encode()).hexdigest()[:8]
    folder = Path(recipe.folder) / "trials" / f"{slug}-seed{settings.seed}-{digest}"
    changed = replace(settings, run_dir=str(folder), progress=False)
    return changed if device is None else replace(changed, device=device)


def _claim(queue: Queue, recipe: Recipe, pulse: Pulse) -> list[Claim]:
    """Claim a trial, and with it its share of those that can be trained together with it."""
    claims = queue.claim(1)
    pulse.hold(claims)
    if not claims or recipe.batch == 1 or recipe.search is not None:
        return claims
    key = batch_key(claims[0].settings[0])
    if key is None:
        return claims
    same = lambda values: batch_key(values) == key  # noqa: E731
    share = math.ceil((queue.waiting(same) + 1) / recipe.worker_count)
    more = queue.claim(min(share, recipe.batch) - 1, same)
    pulse.hold(more)
    return claims + more


def _run(
    queue: Queue, recipe: Recipe, pulse: Pulse, claims: list[Claim], device: str | None
) -> None:
    """Train all runs of some trials and settle the trials."""
    plan = [
        (claim, trial_settings(recipe, claim, settings, device))
        for claim in claims
        for settings in claim.settings
    ]
    settings = [one for _, one in plan]
    with ExitStack() as stack:
        # In one order for all, so that no two workers wait for each other.
        for name in sorted({Path(str(one.run_dir)).name for one in settings}):
            stack.enter_context(locked(Path(recipe.folder) / "locks" / name))
        outcomes = outcomes_of(settings, recipe.batch)
    for claim in claims:
        mine = [o for (owner, _), o in zip(plan, outcomes, strict=True) if owner is claim]
        _settle(queue, recipe, claim, mine)
        pulse.drop(claim)


def _settle(queue: Queue, recipe: Recipe, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors:
        queue.fail(claim, " ".join(str(errors[0]).split()) or type(errors[0]).__name__)
        return
    rows = [_numbers(outcome) for outcome in outcomes if isinstance(outcome, Run)]
    values = [row[recipe.objective] for row in rows]
    if not all(value is not None and math.isfinite(value) for value in values):
        queue.fail(claim, f"its {recipe.objective} is not a finite number: {values}")
        return
    queue.finish(claim, rows, sum(values) / len(values))


def _numbers(run: Run) -> dict[str, Any]:
    """Give what the table says of a run."""
    accepted = accepted_fraction(run.scalars, run.config).mean()
    numbers = {name: run.summary.get(name) for name in _NUMBERS}
    return {
        "seed": run.config["seed"],
        **numbers,
        "accepted": None if math.isnan(accepted) else float(accepted),
        "seconds": float(run.scalars["seconds"].sum()),
        "folder": run.folder.name,
    }


def _device(recipe: Recipe, number: int) -> str | None:
    return recipe.devices[number % len(recipe.devices)] if recipe.devices else None


@contextmanager
def _terminate_gently() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: end between two steps, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
