"""Small sweeps for the tests."""

from pathlib import Path
from typing import Any

from gafscope.sweep import Recipe, read_recipe
from gafscope.trainer import TrainSettings

SETTINGS: dict[str, Any] = {
    "label_noise": 0.3,
    "model_options": {"hidden": 16},
    "steps": 60,
    "validate_every": 20,
    "checkpoint_every": 20,
    "record_layers_every": 30,
}


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """Read a recipe of four settings with two seeds each, changed as a test needs it."""
    values = {
        "settings": SETTINGS,
        "grid": [{"rule": ["mean"]}, {"rule": ["gaf"], "tau": [0.7, 0.8, 0.9]}],
        "seeds": 2,
        "folder": str(folder),
        "heartbeat": 1,
        "workers": 2,
        **changes,
    }
    values = {key: value for key, value in values.items() if value is not None}
    return read_recipe(values, Path("small.yaml"), {"quick": TrainSettings()})
