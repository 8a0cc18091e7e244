"""Opening a run's folder: a new one, or one that the same settings wrote before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gafscope.errors import UserError
from gafscope.records.files import atomic_write, is_leftover, write_failure
from gafscope.records.provenance import provenance

CONFIG, PROVENANCE, SCALARS = "config.yaml", "provenance.json", "scalars.jsonl"
MATRICES, SUMMARY = "matrices", "summary.json"
_REMEDY = "Give another --run-dir, or remove the folder if it is no longer needed."
_ABSENT = "not set"


def is_run(folder: Path) -> bool:
    """Tell whether `folder` is a run's folder.

    Args:
        folder: Any path.

    Returns:
        True when it holds settings and provenance.
    """
    return (folder / CONFIG).is_file() and (folder / PROVENANCE).is_file()


def open_folder(folder: Path, config: Mapping[str, Any], *, seed: int, device: str) -> bool:
    """Create a run's folder, or check that the one there was made with the same settings.

    Args:
        folder: The run's folder.
        config: Settings, plain values only. `steps` may be larger than it was: the run is
            prolonged and the settings are written anew.
        seed: The seed of the run.
        device: The device it runs on.

    Returns:
        True when the folder already held this run.

    Raises:
        UserError: The folder holds a run with other settings or another seed, or files that are
            no run; or it cannot be written.
    """
    text = _dump(config)
    if is_run(folder):
        _check_same(folder, yaml.safe_load(text), seed)
        if (folder / CONFIG).read_text(encoding="utf-8") != text:
            _write(folder / CONFIG, text)
        return True
    if folder.is_dir():
        _check_fresh(folder)
    try:
        (folder / MATRICES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(folder, error, "Nothing was written.") from error
    # The settings come last: with them the folder counts as a run.
    origin = provenance(seed=seed, device=device)
    _write(folder / PROVENANCE, json.dumps(origin, indent=2) + "\n")
    _write(folder / CONFIG, text)
    return False


def read_mapping(path: Path) -> dict[str, Any]:
    """Read one of a run's files of settings or numbers.

    Args:
        path: A YAML or JSON file that holds one mapping.

    Returns:
        The mapping.

    Raises:
        UserError: The file holds something else.
    """
    text = path.read_text(encoding="utf-8")
    try:
        mapping = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        mapping = None
    if not isinstance(mapping, dict):
        raise UserError(
            f"The file {path} does not hold a mapping of names to values. It was changed or "
            "damaged after it was written: restore it, or remove the run's folder."
        )
    return mapping


def _write(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


def _dump(config: Mapping[str, Any]) -> str:
    try:
        return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise UserError(
            f"A run's settings must be numbers, strings, bools, None, or lists and dicts of "
            f"these, but there is another object among them ({error}). Convert it first."
        ) from error


def _check_fresh(folder: Path) -> None:
    # A start that was cut short leaves no settings, only what is written before them.
    own = {PROVENANCE, MATRICES}
    names = {entry.name for entry in folder.iterdir() if not is_leftover(entry.name)}
    if names - own:
        raise UserError(
            f"The folder {folder} is not empty and not a run: it holds {min(names - own)!r} "
            f"but no {CONFIG} with {PROVENANCE}. Give another --run-dir."
        )


def _check_same(folder: Path, new: dict[str, Any], seed: int) -> None:
    old = read_mapping(folder / CONFIG)
    origin = read_mapping(folder / PROVENANCE)
    pairs = {key: (old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in [*new, *old]}
    differing = [key for key, (before, now) in pairs.items() if _text(before) != _text(now)]
    if differing == ["steps"] and _grows(*pairs["steps"]):
        differing = []
    pairs["seed of the run"] = (origin["seed"], seed)
    if not differing and origin["seed"] != seed:
        differing = ["seed of the run"]
    if differing:
        # Steps that grow are fine, so another key is the one to name.
        key = next((key for key in differing if key != "steps"), "steps")
        before, now = pairs[key]
        rule = " (it may grow, not shrink)" if key == "steps" else ""
        raise UserError(
            f"The folder {folder} holds a run with other settings: {key!r} is {before!r} there "
            f"and {now!r} now{rule}. {_REMEDY}"
        )


def _text(value: Any) -> str:
    # As text, NaN equals NaN and True differs from 1.
    return yaml.safe_dump(value)


def _grows(before: Any, now: Any) -> bool:
    numbers = all(isinstance(value, (int, float)) for value in (before, now))
    return numbers and now > before
