"""What a rule would have accepted, over a whole recorded run."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from gafscope.aggregation import (
    GAF,
    Calibrating,
    Decision,
    Recording,
    RowRule,
    Rule,
    Stateful,
    Weighting,
    check_decision,
    rows_needed,
)
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.records.run import Run

if TYPE_CHECKING:
    import pandas as pd


def replay(run: Run, rule: Rule) -> pd.DataFrame:
    """Let a rule decide on every Gramian that a run recorded.

    For the rule that the run was trained with these are the decisions that were taken, exactly
    (but for a warm-up and a gate, which no rule decides). For any other rule they are what it
    would have accepted of the same macrobatches; it would have led to other parameters. With two
    microbatches every step is recorded, with more those of `record_layers_every`.

    A rule that remembers starts at the first recorded step from its initial state, and learns
    from the recorded steps alone. A rule that calibrates itself needs Gramians that are not
    recorded, so the threshold that the run recorded in its column `tau` is used; steps without
    one (a warm-up) are left out.

    Args:
        run: The run.
        rule: The rule; it is left as it is.

    Returns:
        One row a recorded step. Columns: `step`, `accepted` (how many of the k
        micro-gradients), `stepped`, `weights` (list of k floats), `distance_to_sum` (the
        decision's distances, a list of k floats, NaN where there was no visit), `not_finite`
        (list of indices), and what the rule adds to a record.

    Raises:
        UserError: If the rule needs rows, calibrates itself and is not what the run was trained
            with, or contradicts itself, or the run holds no Gramians.

    Example:
        >>> from gafscope.records import load_run  # doctest: +SKIP
        >>> replay(load_run("runs/demo"), GAF(tau=0.9)).stepped.mean()  # doctest: +SKIP
        0.41
    """
    import pandas as pd

    if isinstance(rule, RowRule):
        raise rows_needed(rule, "in replay: it needs what a run does not keep")
    if not run.recorded_steps:
        raise UserError(
            f"The run in {run.folder} holds no Gramians to decide on. They are written at every "
            "checkpoint and at the end (with more than two microbatches only when "
            "record_layers_every is above 0): let the run get there."
        )
    if isinstance(rule, Calibrating):
        return pd.DataFrame(_rows_with_recorded_tau(run, rule))
    own = _fresh(rule)
    recording = own if isinstance(own, Recording) else None
    rows = []
    for step in run.recorded_steps:
        row = _row(run, step, own)
        if recording is not None:
            row.update(recording.scalars())
        rows.append(row)
    return pd.DataFrame(rows)


def _rows_with_recorded_tau(run: Run, rule: Calibrating) -> list[dict[str, Any]]:
    names = list(rule.scalars()) if isinstance(rule, Recording) else []
    missing = {"tau", *names} - set(run.scalars.columns)
    if missing:
        raise UserError(
            f"{type(rule).__name__} calibrates itself on gradients that a run does not keep, and "
            f"the run in {run.folder} recorded no '{min(missing)}' of such a rule; replay a run "
            "that was trained with it, or a rule with a fixed threshold such as GAF(tau=0.97)."
        )
    recorded = run.scalars.set_index("step")[["tau", *(n for n in names if n != "tau")]]
    known: dict[Any, dict[Any, Any]] = recorded[recorded["tau"].notna()].to_dict("index")
    steps = [step for step in run.recorded_steps if step in known]
    return [{**_row(run, step, GAF(tau=known[step]["tau"])), **known[step]} for step in steps]


def _row(run: Run, step: int, rule: Weighting) -> dict[str, Any]:
    gramian = _gramian(run, step)
    decision = rule(gramian)
    check_decision(decision, gramian.matrix, rule)
    return {"step": step, **_columns(decision)}


def _gramian(run: Run, step: int) -> Gramian:
    layers = {name: torch.from_numpy(K) for name, K in run.layer_matrices(step).items()}
    return Gramian(torch.from_numpy(run.matrix(step)), layers)


def _columns(decision: Decision) -> dict[str, Any]:
    finite = decision.finite.tolist()
    return {
        "accepted": sum(decision.accepted.tolist()),
        "stepped": decision.step,
        "weights": decision.weights.tolist(),
        "distance_to_sum": decision.distances.tolist(),
        "not_finite": [i for i, good in enumerate(finite) if not good],
    }


def _fresh(rule: Weighting) -> Weighting:
    """Give a copy of a rule, with the state that it began with."""
    if isinstance(rule, Stateful) and dataclasses.is_dataclass(rule):
        return dataclasses.replace(rule)  # state is no argument of a rule
    return copy.deepcopy(rule)
