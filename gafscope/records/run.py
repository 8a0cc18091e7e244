"""Reading a run's folder back."""

from __future__ import annotations

import difflib
import html
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from jaxtyping import Float64

from gafscope.errors import UserError, unknown_name
from gafscope.geometry import cosine_distance
from gafscope.records.acceptance import accepted_fraction
from gafscope.records.folder import (
    CONFIG,
    MATRICES,
    PROVENANCE,
    SCALARS,
    SUMMARY,
    is_run,
    read_mapping,
)
from gafscope.records.matrices import WHOLE_MODEL, MatrixStore
from gafscope.records.rows import read_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder holds.

    Attributes:
        folder: The run's folder.
        config: Its settings.
        provenance: Versions, git commit, seed, device, command and start time.
        summary: Final numbers; empty while the run has not ended.
        scalars: One row a step. Columns: `step`, `loss`, `accuracy` (of 1), `accepted` (how
            many of the k microbatches), `stepped` (bool: was there an update), `distance_mean`
            (over the pairs, in [0, 2]), `distance_to_sum` (list of k floats, NaN where there was
            no visit), `grad_norm`, `lr`, `seconds`, at some steps `validation_loss` and
            `validation_accuracy`, and what a rule adds.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    scalars: pd.DataFrame = field(repr=False)

    @property
    def recorded_steps(self) -> list[int]:
        """The steps whose Gramians were recorded, in ascending order."""
        return self._matrices.steps

    @property
    def layers(self) -> list[str]:
        """Names of the layers whose own Gramians were recorded."""
        return self._matrices.layers

    def matrix(self, step: int, layer: str | None = None) -> Float64[np.ndarray, "k k"]:
        """Read the Gramian `K[i, j] = <g_i, g_j>` of one step.

        Args:
            step: One of `recorded_steps`.
            layer: One of `layers`; None for the whole model.

        Returns:
            (k, k) float64.

        Raises:
            UserError: Nothing was recorded for that step or layer.
        """
        matrix = self._matrices.read(step, WHOLE_MODEL if layer is None else layer)
        if matrix is not None:
            return matrix
        if step not in self.recorded_steps:
            raise _unknown_step(self.folder, step, self.recorded_steps)
        if layer not in self.layers:
            raise unknown_name("layer", str(layer), self.layers)
        raise UserError(
            f"Step {step} of the run in {self.folder} has no Gramian of layer {layer!r}. "
            "Choose a step at which layers were recorded, or leave the layer out."
        )

    def layer_matrices(self, step: int) -> dict[str, Float64[np.ndarray, "k k"]]:
        """Read the Gramians by layer of one step.

        Args:
            step: Any step.

        Returns:
            Layer -> (k, k) float64; empty where no layers were recorded.
        """
        return self._matrices.read_layers(step)

    def cosine_distance(self, step: int, layer: str | None = None) -> Float64[np.ndarray, "k k"]:
        """Give the cosine distances `1 - K[i, j] / sqrt(K[i, i] K[j, j])` of one step.

        Args:
            step: One of `recorded_steps`.
            layer: One of `layers`; None for the whole model.

        Returns:
            (k, k) in [0, 2]: 0 aligned, 1 orthogonal, 2 opposed.

        Raises:
            UserError: Nothing was recorded for that step or layer.
        """
        return cosine_distance(torch.from_numpy(self.matrix(step, layer))).numpy()

    def plot(self) -> Figure:
        """Draw loss, accuracy, cosine distance and acceptance over the steps.

        Returns:
            The figure.
        """
        from gafscope.plots.runs import plot_run

        return plot_run(self.scalars, self.config)

    def panel(self) -> Figure:
        """Draw what `gafscope.watch(..., live=True)` showed in Jupyter, or would have shown.

        Returns:
            Loss, distance, acceptance, the matrix of the last recorded step, layers by steps.
        """
        from gafscope.live.panel import run_panel

        return run_panel(self)

    @cached_property
    def _matrices(self) -> MatrixStore:
        # Kept, so that going through the steps reads every file once.
        return MatrixStore(self.folder / MATRICES)

    def _repr_html_(self) -> str:
        cells = {"run": self.folder.name, "steps": f"{len(self.scalars):,}"}
        if "stepped" in self.scalars:
            cells["updates"] = f"{int(self.scalars['stepped'].sum()):,}"
        for title, name in (("last loss", "loss"), ("last accuracy", "accuracy")):
            cells[title] = _number(_last(self.scalars, name), ".4g")
        cells["accepted"] = _number(accepted_fraction(self.scalars, self.config).mean(), ".1%")
        head = "".join(f"<th>{html.escape(title)}</th>" for title in cells)
        body = "".join(f"<td>{html.escape(text)}</td>" for text in cells.values())
        return f"<table><tr>{head}</tr><tr>{body}</tr></table>"


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run's folder, finished or not.

    Args:
        folder: What was given as `run_dir`. A run that is still going, or that was killed, is
            read up to its last whole line.

    Returns:
        The run; its matrices are read when they are asked for.

    Raises:
        UserError: There is no such folder, it is not a run, or a file in it is damaged.
    """
    path = Path(folder)
    if not is_run(path):
        raise _not_a_run(path)
    summary = read_mapping(path / SUMMARY) if (path / SUMMARY).exists() else {}
    return Run(
        folder=path,
        config=read_mapping(path / CONFIG),
        provenance=read_mapping(path / PROVENANCE),
        summary=summary,
        scalars=read_rows(path / SCALARS),
    )


def _not_a_run(folder: Path) -> UserError:
    what = "does not exist"
    if folder.is_dir():
        what = f"is not a run: it has no {CONFIG} with {PROVENANCE}"
    around = [folder, folder.parent] if folder.is_dir() else [folder.parent]
    for place in around:
        runs = {path.name: path for path in sorted(_subfolders(place)) if is_run(path)}
        if runs:
            near = difflib.get_close_matches(folder.name, runs, n=5, cutoff=0.4)
            names = [*near, *(name for name in runs if name not in near)][:10]
            offer = ", ".join(str(runs[name]) for name in names)
            return UserError(f"The folder {folder} {what}. Runs near it: {offer}.")
    return UserError(f"The folder {folder} {what}. Give the folder that a run wrote (--run-dir).")


def _subfolders(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


def _unknown_step(folder: Path, step: int, steps: list[int]) -> UserError:
    if not steps:
        return UserError(
            f"The run in {folder} holds no Gramians, so none for step {step}. They are written "
            "at every checkpoint and at the end: let the run get there."
        )
    near = sorted(sorted(steps, key=lambda other: abs(other - step))[:4])
    return UserError(
        f"Step {step} of the run in {folder} has no Gramian. The nearest recorded steps are "
        f"{', '.join(map(str, near))}."
    )


def _last(scalars: pd.DataFrame, name: str) -> float:
    if name not in scalars:
        return math.nan
    known = scalars[name].dropna().tolist()
    return known[-1] if known else math.nan


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
