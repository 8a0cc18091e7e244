"""Searches: which sampler draws how many settings from which ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gafscope.errors import UserError, unknown_name
from gafscope.sweep.values import check_value

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

SAMPLERS = ("tpe", "random", "qmc", "gp")
"""Optuna's samplers by name; every point of a lattice is what `grid:` is for."""
_RANGE = ("low", "high", "log", "step")


@final
@dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
        sampler: One of `SAMPLERS`.
        trials: How many settings are tried.
        space: Setting -> a list of values to choose from, or a range: `low`, `high` and optionally
            `log` (true draws the logarithm evenly) or `step`. Whole numbers at both ends give
            whole numbers.
        seed: Seed of the sampler.
    """

    sampler: str
    trials: int
    space: dict[str, Any]
    seed: int = 0

    def make_sampler(self, worker: int) -> BaseSampler:
        """Make Optuna's sampler.

        Args:
            worker: Which of the workers it serves: two of one seed would draw the same settings.
        """
        from optuna import samplers

        seed = self.seed + worker
        if self.sampler == "tpe":
            # Settings that other workers are trying count as bad ones, so that they are not
            # tried again meanwhile.
            return samplers.TPESampler(seed=seed, constant_liar=True)
        if self.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.sampler == "qmc":
            # One sequence for all: the next place in it is kept in the storage.
            return samplers.QMCSampler(seed=self.seed, scramble=True)
        return samplers.GPSampler(seed=seed)

    def draw(self, trial: Trial) -> dict[str, Any]:
        """Draw the settings of a trial; of one that was begun before they are the same again.

        Args:
            trial: Optuna's trial.

        Returns:
            Setting -> value.
        """
        return {key: self._draw(trial, key, entry) for key, entry in self.space.items()}

    def _draw(self, trial: Trial, key: str, entry: Any) -> Any:
        if isinstance(entry, list | tuple):
            return trial.suggest_categorical(key, list(entry))
        log, step = entry.get("log", False), entry.get("step")
        if all(type(entry[end]) is int for end in ("low", "high")):
            return trial.suggest_int(key, entry["low"], entry["high"], step=step or 1, log=log)
        return trial.suggest_float(key, entry["low"], entry["high"], step=step, log=log)


def read_search(values: Any, source: Path) -> Search:
    """Read the `search` of a recipe.

    Args:
        values: What stands there.
        source: The recipe's file, for messages.

    Returns:
        The search.

    Raises:
        UserError: If a key is unknown or a value wrong.
    """
    where = f"'search' of {source}"
    known = ("sampler", "trials", "space", "seed")
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must hold {', '.join(known)}, but is {values!r}; correct it.")
    for key in values:
        if key not in known:
            raise unknown_name(f"key in {where}", str(key), known)
    sampler = values.get("sampler", "tpe")
    if sampler not in SAMPLERS:
        hint = " (for a grid write 'grid' instead of 'search')" if sampler == "grid" else ""
        raise unknown_name(f"sampler{hint}", str(sampler), SAMPLERS)
    for key, least in (("trials", 1), ("seed", 0)):
        value = values.get(key, 0 if key == "seed" else None)
        if type(value) is not int or value < least:
            raise UserError(
                f"'{key}' in {where} must be a whole number, at least {least}, but is {value!r}; "
                "correct it."
            )
    space = values.get("space")
    if not isinstance(space, Mapping) or not space:
        raise UserError(
            f"'space' in {where} must hold lines of 'setting: [values]' or 'setting: {{low: 0.1, "
            f"high: 1.0}}', but is {space!r}; correct it."
        )
    entries = {str(key): _entry(str(key), entry, where) for key, entry in space.items()}
    return Search(sampler, values["trials"], entries, values.get("seed", 0))


def _entry(key: str, entry: Any, where: str) -> Any:
    if isinstance(entry, list) and entry:
        return [check_value(key, value, where) for value in entry]
    if not isinstance(entry, Mapping) or not {"low", "high"} <= set(entry):
        raise UserError(
            f"The setting '{key}' in {where} must be a list of values or a range with 'low' and "
            f"'high', but is {entry!r}; correct it."
        )
    for name in entry:
        if name not in _RANGE:
            raise unknown_name(f"key of the range '{key}' in {where}", str(name), _RANGE)
    return _range(key, entry, where)


def _range(key: str, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    ends = {name: entry[name] for name in ("low", "high")}
    if "." not in key:  # an option's type is known to its owner only
        ends = {name: check_value(key, end, where) for name, end in ends.items()}
    log, step = entry.get("log", False), entry.get("step")
    rule = ""
    if not all(type(end) in (int, float) and math.isfinite(end) for end in ends.values()):
        rule = "must have numbers as its ends"
    elif not ends["low"] < ends["high"]:
        rule = "must have 'low' below 'high'"
    elif not isinstance(log, bool):
        rule = "must have true or false as 'log'"
    elif log and (ends["low"] <= 0 or step is not None):
        rule = "must, with 'log', lie above 0 and have no 'step'"
    elif step is not None and not (type(step) in (int, float) and step > 0):
        rule = "must have a 'step' above 0"
    if rule:
        raise UserError(f"The range '{key}' in {where} {rule}, but is {dict(entry)}; correct it.")
    return ends | {"log": log} | ({} if step is None else {"step": step})
