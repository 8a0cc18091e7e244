"""What the gates share: distances of the rows to a direction that was remembered.

Shape legend: k rows; n numbers in one parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.aggregation.apply import aggregate, without_rows
from gafscope.aggregation.kinds import Aggregate, Calibrating, Rule, Stateful
from gafscope.errors import UserError
from gafscope.geometry import cross_gramian, finite_rows, pair_distance
from gafscope.gradients import GradientRows, Gramian
from gafscope.gradients.types import flat_rows

Vector = Mapping[str, Tensor]
"""One vector over all parameters, by parameter name; a name that is missing stands for zeros."""


def square(vector: Vector) -> float:
    """Give |v|^2, summed in float64."""
    return sum(_dot(part, part) for part in vector.values())


def gate_rows(
    rule: Rule, rows: GradientRows, gramian: Gramian, reference: Vector, tau: float
) -> Aggregate:
    """Let the rows that lie within tau of a reference through to a rule.

    Args:
        rule: Decides on the rows that are let through; the others look not finite to it.
        rows: The k micro-gradients.
        gramian: Their inner products.
        reference: The vector to compare with; an empty one lets every row through.
        tau: Largest accepted cosine distance.

    Returns:
        What the rule made of them. The decision's distances are those to the reference, NaN
        where there is none.
    """
    finite = finite_rows(gramian.matrix).cpu()
    distances = torch.full((gramian.k,), math.nan, dtype=torch.float64)
    if not reference:
        result = aggregate(rule, rows, gramian)
    else:
        distances = _distances(rows, gramian, reference)
        result = aggregate(rule, rows, without_rows(gramian, finite & ~(distances <= tau)))
    return replace(result, decision=replace(result.decision, distances=distances, finite=finite))


def distance(gradient: Tensor, other: Tensor) -> float:
    """Give the cosine distance of two tensors of one shape, from float64 sums."""
    return pair_distance(_dot(gradient, other), _dot(gradient, gradient), _dot(other, other))


def check_base(rule: Rule, gate: str) -> None:
    """Refuse a base rule that asks for measurements, which a gate does not pass on.

    Args:
        rule: The rule under the gate.
        gate: The gate's name, for the message.

    Raises:
        UserError: If the rule calibrates itself.
    """
    if isinstance(rule, Calibrating):
        raise UserError(
            f"{gate} cannot hold {type(rule).__name__}, which asks for measurements of its own; "
            "use a rule with a fixed tau under the gate, such as GAF(tau=0.97)."
        )


def check_reference(reference: Vector, rows: GradientRows, gate: str) -> None:
    """Refuse a remembered vector that is not of this model.

    Args:
        reference: What the gate remembers.
        rows: The micro-gradients.
        gate: The gate's name, for the message.

    Raises:
        UserError: If a parameter is unknown or has another shape.
    """
    for name, part in reference.items():
        found = tuple(rows.named[name].shape[1:]) if name in rows.named else None
        if found != tuple(part.shape):
            raise UserError(
                f"What {gate} remembers belongs to another model: it holds '{name}' of shape "
                f"{tuple(part.shape)}, but here "
                + ("there is no such parameter" if found is None else f"it has shape {found}")
                + f". Load the state that goes with this model, or start with a new {gate}."
            )


def wide(tensor: Tensor) -> Tensor:
    """Give a tensor in float32 at least: half types would lose an average's small changes."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def check_decay(decay: float, gate: str) -> None:
    """Refuse a decay that forgets or keeps everything.

    Args:
        decay: Weight of the past.
        gate: The gate's name, for the message.

    Raises:
        UserError: If it is outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise UserError(
            f"decay of {gate} is the weight of the past and must lie in [0, 1), but it is {decay}."
        )


def gate_state(rule: Rule, **vectors: Vector) -> dict[str, Any]:
    """Give a gate's state: what it remembers, and the state of the rule under it."""
    inner = rule.state_dict() if isinstance(rule, Stateful) else {}
    return {**{name: dict(vector) for name, vector in vectors.items()}, "rule": inner}


def load_vector(rule: Rule, state: Mapping[str, Any], name: str, gate: str) -> dict[str, Tensor]:
    """Read a gate's state back, that of the rule under it included.

    Args:
        rule: The rule under the gate.
        state: What `gate_state` gave.
        name: Name of the vector in it.
        gate: The gate's name, for the message.

    Returns:
        The vector.

    Raises:
        UserError: If it is the state of another rule.
    """
    stateful = isinstance(rule, Stateful)
    if set(state) != {name, "rule"} or bool(state["rule"]) > stateful:
        raise UserError(
            f"This is not the state of {gate}({type(rule).__name__}), which holds '{name}' and "
            f"'rule', but of another rule: it holds {sorted(state)}. Load what the same rule's "
            "state_dict() gave."
        )
    if isinstance(rule, Stateful):
        rule.load_state_dict(state["rule"])
    return dict(state[name])


def _distances(rows: GradientRows, gramian: Gramian, reference: Vector) -> Float64[Tensor, " k"]:
    dots = torch.zeros(gramian.k, dtype=torch.float64)
    for name, part in reference.items():
        values = rows.named[name]
        other = part.to(values.device).reshape(1, -1)
        dots += cross_gramian(flat_rows(values), other).squeeze(1).cpu()
    length = square(reference)
    pairs = zip(dots.tolist(), gramian.matrix.diagonal().tolist(), strict=True)
    return torch.tensor([pair_distance(dot, own, length) for dot, own in pairs]).double()


def _dot(a: Tensor, b: Tensor) -> float:
    return float(cross_gramian(a.reshape(1, -1), b.to(a.device).reshape(1, -1)))
