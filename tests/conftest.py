"""Settings of all tests. Shapes on the tensors of public functions are checked in tests only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Before matplotlib is imported: no test may open a window.
os.environ["MPLBACKEND"] = "Agg"
# Before gafscope is imported: the hook rewrites modules as they are loaded. The "tower" lets an
# int pass for a float, as every other type checker does.
install_import_hook(
    [
        "gafscope.geometry",
        "gafscope.gradients",
        "gafscope.aggregation",
        "gafscope.calibration",
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
# The tests' networks are so small that more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that GAFSCOPE_DATA names; without one the test is skipped."""
    folder = os.environ.get("GAFSCOPE_DATA")
    if not folder:
        pytest.skip("GAFSCOPE_DATA names no folder with data sets")
    return Path(folder)
