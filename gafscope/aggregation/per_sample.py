"""One training step in which every sample is a micro-gradient: Gramian, decision, update.

Shape legend: k micro-gradients, one a sample unless `microbatches` says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from gafscope.aggregation.apply import rows_needed
from gafscope.aggregation.check import check_decision
from gafscope.aggregation.decision import Decision
from gafscope.aggregation.kinds import RowRule, Rule
from gafscope.gradients import Gramian, Loss
from gafscope.gradients.problem import trainable
from gafscope.gradients.weighted import weighted_gradient


@final
@dataclass(frozen=True, eq=False)
class PerSampleStep:
    """What `per_sample_step` saw and decided.

    Attributes:
        decision: The rule's decision.
        gramian: Inner products of the k micro-gradients, on the CPU.
        losses: (k,) float64, the loss of each sample (the mean of each microbatch), on the CPU.
    """

    decision: Decision
    gramian: Gramian
    losses: Float64[Tensor, " k"]


def per_sample_step(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    rule: Rule,
    *,
    microbatches: int | None = None,
    layers: bool = False,
    engine: str = "auto",
    memory_budget: int | None = None,
    seed: int | None = None,
) -> PerSampleStep:
    """Decide on single samples and write the rule's update, `sum_i w_i g_i`, into `.grad`.

    It stands where `zero_grad()`, the loss and `backward()` stand in a loop of one's own, which
    goes on with `optimizer.step()`. What was in `.grad` is replaced, not added to. Where the rule
    skips, every trainable parameter's `.grad` is None, so that the optimizer's step moves
    nothing, by momentum or weight decay neither. A parameter that the loss does not use has
    `.grad` None as well. The rest of the model, buffers included, is left as it was.

    Samples whose loss or gradient holds a NaN or an infinity are never accepted: they are left
    out, not multiplied by 0.

    Args:
        model: Any module without BatchNorm in training mode, which couples samples.
        loss: `(model, batch) -> (B,)` losses; see `supervised`.
        batch: A pytree of tensors with n samples in their first dimension.
        rule: The weighting, such as `GAF(tau=0.97)`. One that remembers learns from the step.
        microbatches: k, to decide on the means of k microbatches; None: on single samples.
        layers: Give the Gramian of each parameter to the rule as well.
        engine: As in `gramian`.
        memory_budget: Bytes that may be used beside model and batch; where the gradients do not
            fit, the accepted ones are computed a second time.
        seed: Seed of the dropout masks. None draws it from torch's global generator, so that
            each step has masks of its own.

    Returns:
        The decision, the Gramian and the losses.

    Raises:
        UserError: As `gramian`, or if the rule needs rows, which are not kept here, or its
            decision contradicts itself.

    Example:
        >>> from gafscope.aggregation import GAF
        >>> model, loss = nn.Linear(3, 1), lambda model, batch: model(batch).squeeze(1) ** 2
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> for batch in torch.ones(5, 8, 3):
        ...     step = per_sample_step(model, loss, batch, GAF(tau=0.97))
        ...     optimizer.step()
        >>> step.decision.accepted.sum()
        tensor(8)
    """
    if isinstance(rule, RowRule):
        raise rows_needed(rule, "per sample, where only their Gramian is kept")
    decisions: list[tuple[Decision, Gramian]] = []

    def weigh(gramian: Gramian) -> Tensor | None:
        # Decisions are taken on the CPU, wherever the gradients are.
        matrices = {name: matrix.cpu() for name, matrix in gramian.layers.items()}
        gramian = Gramian(gramian.matrix.cpu(), matrices, gramian.engine, gramian.notes)
        decision = rule(gramian)
        check_decision(decision, gramian.matrix, rule)
        decisions.append((decision, gramian))
        return decision.weights if decision.step else None

    result = weighted_gradient(
        model,
        loss,
        batch,
        weigh,
        microbatches,
        layers=layers,
        engine=engine,
        memory_budget=memory_budget,
        seed=int(torch.randint(1 << 40, ())) if seed is None else seed,
    )
    for name, parameter in trainable(model).items():
        parameter.grad = None if result.named is None else result.named.get(name)
    ((decision, gramian),) = decisions
    return PerSampleStep(decision, gramian, result.losses.cpu())
