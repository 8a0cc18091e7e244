"""The one queue of a sweep: an Optuna study, whose waiting trials any worker may claim.

A *point* is what must be run once: a setting with its seed (grid), or the n-th draw (search).
Each trial of the study names its point. A point may have several trials: one that died and the
one that runs it again, or two that were queued by two starters at the same moment. A trial may be
claimed only while no older one of its point is unfinished and none is settled; claims are atomic
and new trials are always younger, so that each point runs at one place and is counted once.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, final

from gafscope.errors import UserError
from gafscope.sweep.points import (
    ERROR,
    LET_GO,
    MOST_DEATHS,
    POINT,
    RUNS,
    WORKER,
    claimable,
    failed,
    points_of,
    settled,
    unfinished,
)
from gafscope.sweep.recipe import OBJECTIVES, Recipe
from gafscope.sweep.storage import open_storage
from gafscope.sweep.values import put
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

# Where and how trials run, which may differ from machine to machine.
_ELSEWHERE = ("data_dir", "download", "download_url", "device", "keep_checkpoints", "rank_timeout")
Fits = Callable[[TrainSettings], bool]


@final
@dataclass(frozen=True, eq=False)
class Claim:
    """A trial that this worker runs.

    Attributes:
        number: Its number in the study.
        trial_id: Its number in the storage.
        values: The settings that vary.
        settings: One training run a seed, without a folder.
    """

    number: int
    trial_id: int
    values: dict[str, Any]
    settings: list[TrainSettings]


@final
class Queue:
    """The trials of a sweep.

    Args:
        recipe: The sweep.
        worker: Names the worker in the storage; its number starts the sampler's seed.
        number: Which worker it is.
        join: Refuse to begin a sweep that nobody has begun.

    Attributes:
        keys: The settings that vary.

    Raises:
        UserError: If the storage cannot be opened, holds a sweep of this name with other settings,
            or (with `join`) holds none.
    """

    def __init__(self, recipe: Recipe, worker: str = "", number: int = 0, join: bool = False):
        storage = open_storage(recipe.storage, recipe.heartbeat)
        import optuna

        self._recipe, self._worker, self._storage = recipe, worker, storage
        self.keys = recipe.keys
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some samplers are new in Optuna
            search = recipe.search
            sampler = None if search is None else search.make_sampler(number)
            if join and recipe.name not in optuna.get_all_study_names(storage):
                raise UserError(
                    f"There is no sweep '{recipe.name}' in the storage to join; begin it by the "
                    "same command without --join."
                )
            self._study = optuna.create_study(
                study_name=recipe.name,
                storage=storage,
                sampler=sampler,
                direction=optuna.study.StudyDirection[OBJECTIVES[recipe.objective].upper()],
                load_if_exists=True,
            )
        self._points = points_of(recipe)
        self._check_same()

    def trials(self) -> dict[str, list[FrozenTrial]]:
        """Give the trials of each point of the recipe, oldest first."""
        trials: dict[str, list[FrozenTrial]] = {point: [] for point in self._points}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get(POINT) in trials:
                trials[trial.user_attrs[POINT]].append(trial)
        return trials

    def fill(self, retry_failed: bool = False) -> dict[str, list[FrozenTrial]]:
        """Queue every point that neither waits, runs, nor is settled: new ones, and dead ones.

        Args:
            retry_failed: Queue those that ended with an error as well.

        Returns:
            The trials of each point, those that were added among them.
        """
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        trials, added = self.trials(), False
        for point, mine in trials.items():
            if unfinished(mine) or (settled(mine) and not (retry_failed and failed(mine))):
                continue
            added = True
            drawn = mine[-1] if mine else None
            attributes: dict[str, Any] = {POINT: point}
            deaths = sum(1 for trial in mine if not trial.user_attrs.get(LET_GO))
            if deaths >= MOST_DEATHS and not retry_failed:
                attributes[ERROR] = f"its worker died {deaths} times"
            self._study.add_trial(
                optuna.create_trial(
                    state=optuna.trial.TrialState["FAIL" if ERROR in attributes else "WAITING"],
                    params=drawn.params if drawn else {},
                    distributions=drawn.distributions if drawn else {},
                    user_attrs=attributes,
                )
            )
        return self.trials() if added else trials

    def waiting(self, fits: Fits) -> int:
        """Count the trials that wait.

        Args:
            fits: Which settings count.
        """
        trials = map(claimable, self.trials().values())
        return sum(1 for trial in trials if trial and fits(self._settings(trial)[0]))

    def claim(self, most: int, fits: Fits | None = None) -> list[Claim]:
        """Claim trials that wait.

        Args:
            most: How many at most.
            fits: Which settings are wanted; None for any. Of a search only when they are known.

        Returns:
            Those that are this worker's now; none while all others wait or run elsewhere.
        """
        claims: list[Claim] = []
        for mine in self.fill().values():
            if len(claims) == most:
                break
            trial = claimable(mine)
            if trial is not None and (fits is None or fits(self._settings(trial)[0])):
                claims += self._take(trial)
            elif settled(mine):
                for double in unfinished(mine):
                    self._end(double._trial_id, {LET_GO: True})
        return claims

    def beat(self, claim: Claim) -> None:
        """Give a sign of life of a trial."""
        self._storage.record_heartbeat(claim.trial_id)

    def finish(self, claim: Claim, runs: list[dict[str, Any]], value: float) -> None:
        """Settle a trial.

        Args:
            claim: The trial. If it has been given up for dead meanwhile, nothing happens.
            runs: The numbers of each of its runs.
            value: Its objective.
        """
        self._end(claim.trial_id, {RUNS: runs}, value)

    def fail(self, claim: Claim, error: str) -> None:
        """Settle a trial that cannot be run.

        Args:
            claim: The trial.
            error: Why.
        """
        self._end(claim.trial_id, {ERROR: error})

    def release(self, claim: Claim) -> None:
        """Give back a trial that this worker does not finish; the next `fill` queues it again."""
        self._end(claim.trial_id, {LET_GO: True})

    def bury(self, worker: str) -> None:
        """Give up the trials of a worker that is known to be dead, by its name."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING" and trial.user_attrs.get(WORKER) == worker:
                self._end(trial._trial_id, {})

    def values_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """Give the settings that vary, as a trial has them."""
        point = self._points[trial.user_attrs[POINT]]
        return trial.params if point is None else point[0]

    def seeds_of(self, trial: FrozenTrial) -> tuple[int, ...]:
        """Give the seeds of a trial's runs."""
        point = self._points[trial.user_attrs[POINT]]
        return self._recipe.seeds if point is None else (point[1],)

    def _take(self, waiting: FrozenTrial) -> list[Claim]:
        """Claim one trial, unless another worker was faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import Trial, TrialState

        try:
            # First: Optuna never counts a running trial without a heartbeat as dead.
            self._storage.record_heartbeat(waiting._trial_id)
            if not self._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
                return []
        except UpdateFinishedTrialError:
            return []
        trial = Trial(self._study, waiting._trial_id)
        trial.set_user_attr(WORKER, self._worker)
        values = self._draw(trial) if self._recipe.search else self.values_of(waiting)
        settings = self._settings(waiting, values)
        return [Claim(waiting.number, waiting._trial_id, values, settings)]

    def _settings(
        self, trial: FrozenTrial, values: dict[str, Any] | None = None
    ) -> list[TrainSettings]:
        base = put(self._recipe.base, self.values_of(trial) if values is None else values)
        return [put(base, {"seed": seed}) for seed in self.seeds_of(trial)]

    def _draw(self, trial: Trial) -> dict[str, Any]:
        assert self._recipe.search is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            return self._recipe.search.draw(trial)

    def _end(
        self, trial_id: int, attributes: Mapping[str, Any], value: float | None = None
    ) -> None:
        import optuna

        state = optuna.trial.TrialState["FAIL" if value is None else "COMPLETE"]
        values = None if value is None else [value]
        try:
            for key, attribute in attributes.items():
                self._storage.set_trial_user_attr(trial_id, key, attribute)
            self._storage.set_trial_state_values(trial_id, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            return

    def _check_same(self) -> None:
        """Refuse a sweep of this name that other settings began."""
        base = {k: v for k, v in asdict(self._recipe.base).items() if k not in _ELSEWHERE}
        own: dict[str, Any] = {"keys": sorted(self._recipe.keys)}
        if self._recipe.search is not None:
            own |= {"seeds": list(self._recipe.seeds), "space": self._recipe.search.space}
        own = json.loads(json.dumps(own | {"base": base}))
        for key in self._recipe.keys:
            own["base"].pop(key, None)
        there = self._study.user_attrs.get("sweep")
        if there is None:
            self._study.set_user_attr("sweep", own)
            return
        for name, part in own.items():
            before = there.get(name)
            if part == before:
                continue
            if name == "base" and isinstance(before, dict):
                keys = dict.fromkeys([*part, *before])
                key = next(key for key in keys if part.get(key) != before.get(key))
                name, before, part = key, before.get(key), part.get(key)
            raise UserError(
                f"The sweep '{self._recipe.name}' was begun with other settings: {name!r} is "
                f"{before!r} there and {part!r} now. A grid, its seeds and a number of trials may "
                "grow; for anything else give the recipe another 'name'."
            )
