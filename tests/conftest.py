"""Settings of all tests; shapes on the tensors of the public functions are checked in tests only."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that GAFSCOPE_DATA names; without one the test is skipped."""
    folder = os.environ.get("GAFSCOPE_DATA")
    if not folder:
        pytest.skip("GAFSCOPE_DATA names no folder with data sets")
    return Path(folder)
