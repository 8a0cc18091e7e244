"""What a sweep varies, over which seeds, and where its trials are queued: read and checked."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from gafscope.errors import UserError, unknown_name
from gafscope.sweep.search import Search, read_search
from gafscope.sweep.values import check_value, put
from gafscope.trainer import TrainSettings

OBJECTIVES = {
    "validation_accuracy": "maximize",
    "best_validation_accuracy": "maximize",
    "validation_loss": "minimize",
    "best_validation_loss": "minimize",
}
"""What a sweep may choose by -> its direction. The test split is for no choice."""

_KEYS = [
    "name",
    "preset",
    "settings",
    "grid",
    "search",
    "seeds",
    "objective",
    "workers",
    "devices",
    "storage",
    "folder",
    "batch",
    "heartbeat",
    "slurm",
]
_BATCH = 32
_HEARTBEAT = 15


@final
@dataclass(frozen=True)
class Recipe:
    """A sweep.

    Attributes:
        name: Its name, also in the storage.
        base: The settings that all trials share.
        points: The grid: the settings that vary, one mapping a point; empty for a search.
        search: The search; None for a grid.
        seeds: Seeds of every setting.
        objective: What the best setting is chosen by, one of `OBJECTIVES`.
        folder: Where trials, table and figure go.
        storage: Address of the database that queues the trials.
        workers: How many processes on this machine; None for as many as it has room for.
        devices: Devices that the workers take in turn; empty leaves the choice to torch.
        batch: At most so many trials of one shape are trained together; 1 for never.
        heartbeat: Seconds between two signs of life of a worker; after four without one its
            trials are run again.
        slurm: Options of submitit's executor; empty without Slurm.
    """

    name: str
    base: TrainSettings
    points: tuple[dict[str, Any], ...]
    search: Search | None
    seeds: tuple[int, ...]
    objective: str
    folder: str
    storage: str
    workers: int | None = None
    devices: tuple[str, ...] = ()
    batch: int = _BATCH
    heartbeat: int = _HEARTBEAT
    slurm: dict[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The settings that vary, without the seed."""
        if self.search is not None:
            return [*self.search.space]
        return list(dict.fromkeys(key for point in self.points for key in point))

    @property
    def worker_count(self) -> int:
        """How many worker processes this machine runs."""
        if self.workers is not None:
            return self.workers
        if self.devices:
            return len(self.devices)
        return max(_cores() // (self.base.threads or 1), 1)

    def as_json(self) -> dict[str, Any]:
        """Give plain values for a worker process; `recipe_from_json` reads them."""
        return asdict(self)


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """Read what `Recipe.as_json` gave.

    Args:
        values: Plain values.
    """
    search = None if values["search"] is None else Search(**values["search"])
    changed: dict[str, Any] = {
        "base": TrainSettings(**values["base"]),
        "search": search,
        **{name: tuple(values[name]) for name in ("points", "seeds", "devices")},
    }
    return Recipe(**{**values, **changed})


def read_recipe(
    values: Mapping[str, Any], source: Path, presets: Mapping[str, TrainSettings]
) -> Recipe:
    """Read a recipe.

    Args:
        values: What its YAML file holds: `settings` (any of `TrainSettings`, on top of `preset`),
            either `grid` (a mapping of settings to lists, or a list of such mappings) or `search`
            (`sampler`, `trials`, `space`), and optionally `name`, `seeds` (a number or a list),
            `objective`, `workers`, `devices`, `storage`, `folder`, `batch`, `heartbeat`, `slurm`.
        source: The file, for messages and as the default name.
        presets: Preset name -> settings; the first one is the default.

    Returns:
        The recipe.

    Raises:
        UserError: If a key is unknown or a value wrong.
    """
    for key in values:
        if key not in _KEYS:
            raise unknown_name(f"key in {source}", str(key), _KEYS)
    preset = values.get("preset", next(iter(presets)))
    if preset not in presets:
        raise unknown_name("preset", str(preset), presets)
    base = replace(presets[preset], progress=False)
    base = put(base, _checked(_mapping(values, "settings", source), f"'settings' of {source}"))
    # Many small runs side by side: each on one core unless the recipe says otherwise.
    base = replace(base, threads=base.threads or 1)
    if ("grid" in values) == ("search" in values):
        raise UserError(
            f"The recipe {source} must hold either 'grid' or 'search', found "
            f"{'both' if 'grid' in values else 'neither'}: write what varies under one of them."
        )
    search = read_search(values["search"], source) if "search" in values else None
    name = str(values.get("name", source.stem))
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(
            f"The sweep's name is that of its folder, of letters, digits, '.', '_' and '-', but is "
            f"{name!r}; set 'name' in {source}."
        )
    folder = Path(str(values.get("folder", Path("runs") / name)))
    return Recipe(
        name=name,
        base=base,
        points=() if search else _points(values["grid"], source),
        search=search,
        seeds=_seeds(values.get("seeds", 1), source),
        objective=_objective(values.get("objective", "validation_accuracy"), source),
        folder=str(folder),
        storage=str(values.get("storage") or f"sqlite:///{folder / 'sweep.db'}"),
        workers=_count(values, "workers", None, source),
        devices=_devices(values.get("devices", ()), source),
        batch=_count(values, "batch", _BATCH, source) or _BATCH,
        heartbeat=_count(values, "heartbeat", _HEARTBEAT, source) or _HEARTBEAT,
        slurm=_mapping(values, "slurm", source),
    )


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {str(key): check_value(str(key), value, where) for key, value in values.items()}


def _mapping(values: Mapping[str, Any], key: str, source: Path) -> dict[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(
            f"'{key}' of {source} must hold lines of 'name: value', but is {value!r}; correct it."
        )
    return dict(value)


def _points(grid: Any, source: Path) -> tuple[dict[str, Any], ...]:
    """Lay every grid out; a point that two of them hold counts once."""
    where = f"'grid' of {source}"
    points: list[dict[str, Any]] = []
    for part in grid if isinstance(grid, list) else [grid]:
        if not isinstance(part, Mapping) or not part:
            raise UserError(
                f"{where} must hold lines of 'setting: [values]', but is {part!r}; correct it."
            )
        lists = []
        for key, choices in part.items():
            if not isinstance(choices, list) or not choices:
                raise UserError(
                    f"The setting '{key}' in {where} must be a list of values to try, but is "
                    f"{choices!r}; write [{choices}]."
                )
            lists.append([(str(key), check_value(str(key), one, where)) for one in choices])
        points += [dict(point) for point in itertools.product(*lists)]
    return tuple(point for i, point in enumerate(points) if point not in points[:i])


def _seeds(seeds: Any, source: Path) -> tuple[int, ...]:
    if type(seeds) is int and seeds >= 1:
        return tuple(range(seeds))
    if isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds):
        return tuple(dict.fromkeys(seeds))
    raise UserError(
        f"'seeds' of {source} must be how many, at least 1, or a list of whole numbers, but is "
        f"{seeds!r}; write `seeds: 5` or `seeds: [0, 1, 2]`."
    )


def _objective(name: Any, source: Path) -> str:
    if name in OBJECTIVES:
        return name
    if isinstance(name, str) and "test" in name:
        raise UserError(
            f"'objective' of {source} must be measured on the validation split, since a choice by "
            f"test data says nothing about new data, but is {name!r}; use validation_accuracy."
        )
    raise unknown_name(f"objective in {source}", str(name), OBJECTIVES)


def _count(values: Mapping[str, Any], key: str, default: int | None, source: Path) -> int | None:
    value = values.get(key, default)
    if value is None or (type(value) is int and value >= 1):
        return value
    raise UserError(
        f"'{key}' of {source} must be a whole number, at least 1, but is {value!r}; correct it."
    )


def _devices(devices: Any, source: Path) -> tuple[str, ...]:
    names = [devices] if isinstance(devices, str) else devices
    if isinstance(names, Sequence) and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise UserError(
        f"'devices' of {source} must be names of devices, but is {devices!r}; write [cuda:0]."
    )


def _cores() -> int:
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1
