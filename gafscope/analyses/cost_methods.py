"""What takes turns: a plain pass, our engines and two kinds of training step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.optim import SGD

from gafscope.aggregation import GAF, per_sample_step
from gafscope.analyses.cost_cases import Case
from gafscope.analyses.cost_turns import Call
from gafscope.errors import unknown_name
from gafscope.gradients import Gramian, gramian
from gafscope.gradients.ghost import PRECISIONS

PLAIN, AVERAGING, GAF_STEP = "plain", "averaging step", "GAF step"
ENGINES = ("loop", "vmap", "ghost", "auto")
WHOLE = "whole"
# The reference of the errors: the first few micro-gradients, one by one, in float64.
_CHECKED = 4


def plain_pass(case: Case) -> Call:
    """Make the unit of all ratios: forward and backward of all samples in one batch.

    Args:
        case: Network and batch.

    Returns:
        The call; it drops the gradients.
    """

    def call() -> None:
        torch.autograd.grad(case.loss(case.model, case.batch).mean(), case.parameters)

    return call


def engine_gramian(case: Case, k: int, engine: str) -> Call:
    """Make a call of `gs.gramian`.

    Args:
        case: Network and batch.
        k: Number of microbatches.
        engine: Name of the engine, or `name:variant`, where the variant is a precision, or
            "whole" for the Gramian without those of the layers.

    Returns:
        The call; it gives the `Gramian`.
    """
    name, _, variant = engine.partition(":")
    options: dict[str, Any] = {"precision": variant} if variant else {}
    if variant == WHOLE:
        options = {"layers": False}
    return partial(gramian, case.model, case.loss, case.batch, k, engine=name, **options)


def check_engines(engines: tuple[str, ...]) -> None:
    """Refuse names of engines that do not exist.

    Args:
        engines: What the user asked for.

    Raises:
        UserError: If one is unknown.
    """
    for engine in engines:
        name, colon, variant = engine.partition(":")
        if name not in ENGINES:
            raise unknown_name("engine", name, ENGINES)
        if colon and variant not in (WHOLE, *PRECISIONS):
            raise unknown_name("variant of an engine", variant, (WHOLE, *PRECISIONS))


def averaging_step(case: Case) -> Call:
    """Make a plain training step: forward and backward of all samples, then SGD.

    Args:
        case: Network and batch; the network is copied.

    Returns:
        The call.
    """
    model = copy.deepcopy(case.model)
    optimizer = _optimizer(model)

    def step() -> None:
        optimizer.zero_grad()
        case.loss(model, case.batch).mean().backward()
        optimizer.step()
        # Neither step keeps its gradients to the next, so that their memory counts alike.
        optimizer.zero_grad()

    return step


def gaf_step(case: Case) -> Call:
    """Make the same step by `gs.per_sample_step` with GAF at tau = 2, where it is always taken.

    Args:
        case: Network and batch; the network is copied.

    Returns:
        The call.
    """
    model = copy.deepcopy(case.model)
    optimizer = _optimizer(model)

    def step() -> None:
        per_sample_step(model, case.loss, case.batch, GAF(tau=2.0))
        optimizer.step()
        optimizer.zero_grad()

    return step


def relative_errors(case: Case, k: int, results: Mapping[str, Any]) -> dict[str, float]:
    """Compare the first rows of each Gramian with a float64 loop, `|K - K'| / |K'|`.

    Args:
        case: Network and batch.
        k: Number of microbatches.
        results: Method -> its (k, k) Gramian, or None.

    Returns:
        Method -> relative error of the first 4 rows and columns, in the Frobenius norm.
    """
    m = min(_CHECKED, k)
    inputs, targets = case.first(m * (case.n // k))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    exact = Case(copy.deepcopy(case.model).double(), case.loss, (inputs, targets))
    reference = engine_gramian(exact, m, "loop")().matrix
    matrices = {
        name: result.matrix if isinstance(result, Gramian) else result
        for name, result in results.items()
        if result is not None
    }
    return {
        name: float((matrix[:m, :m].double() - reference).norm() / reference.norm())
        for name, matrix in matrices.items()
    }


def _optimizer(model: torch.nn.Module) -> SGD:
    return SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=0.01)
