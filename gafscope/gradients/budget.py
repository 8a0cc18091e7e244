"""How many microbatches fit into a memory budget at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients.isolation import kept_buffers
from gafscope.gradients.loss import mean_loss
from gafscope.gradients.problem import Problem


@final
@dataclass(frozen=True)
class Plan:
    """Sizes that keep a measurement within its budget.

    Attributes:
        chunk: Microbatches that are differentiated at once.
        block: Rows that are held at once; the Gramian is computed block by block.
        spare: Bytes for rows and blocks beside what differentiating takes; None for no limit.
    """

    chunk: int
    block: int
    spare: int | None = None

    def halved(self, k: int) -> Plan:
        """Give the plan with half of the microbatches at once.

        Args:
            k: Number of microbatches.
        """
        chunk = -(-self.chunk // 2)
        # Chunks must end where blocks end, or a row would be drawn with another seed next time.
        block = self.block if self.block >= k else self.block // chunk * chunk
        return replace(self, chunk=chunk, block=block)


def ghost_plan(problem: Problem, memory_budget: int | None, alone: bool = False) -> Plan:
    """Choose how many microbatches the ghost engine differentiates at once.

    Args:
        problem: The measurement.
        memory_budget: Bytes that may be used beside the model and the batch; None for no limit.
        alone: No other engine will be tried where the budget is too small.

    Returns:
        The plan; its chunk may be too small for a pair of microbatches unless `alone`.

    Raises:
        UserError: If no other engine will be tried, and it does not hold a pair.
    """
    k = problem.k
    if memory_budget is None:
        return Plan(chunk=k, block=k)
    # Beside the saved activations there are gradients on their way, and blocks of rows.
    one = _saved_bytes(problem) * 3 // 2
    chunk = min(memory_budget // max(one, 1), k)
    if alone and chunk < 2 <= k:
        raise UserError(
            f"memory_budget={memory_budget} bytes is too small: engine='ghost' takes at least two "
            f"microbatches at once, about {2 * one} bytes; raise the budget or use smaller "
            "microbatches."
        )
    return Plan(chunk=chunk, block=k, spare=memory_budget // 4)


def plan(problem: Problem, memory_budget: int | None, chunked: bool, whole: bool) -> Plan:
    """Choose the sizes.

    Args:
        problem: The measurement.
        memory_budget: Bytes that may be used beside the model and the batch; None for no limit.
        chunked: The engine can differentiate several microbatches at once.
        whole: All rows are wanted together, so they must fit.

    Returns:
        The plan.

    Raises:
        UserError: If even the smallest sizes need more.
    """
    k = problem.k
    if memory_budget is None:
        return Plan(chunk=k if chunked else 1, block=k)
    row = problem.row_bytes
    # Differentiating holds a microbatch's saved activations, and its row before it is stored.
    transient = row + _saved_bytes(problem)
    if k * row + transient <= memory_budget:
        # All rows fit: give the chunk what they leave.
        spare = (memory_budget - k * row) // transient
        return Plan(chunk=max(1, min(k, spare)) if chunked else 1, block=k)
    # Half of the budget for the chunk, but never more than leaves room for two blocks as large.
    chunk = min(memory_budget // 2 // transient, memory_budget // (transient + 2 * row))
    chunk = max(1, chunk if chunked else 1)
    block = (memory_budget - chunk * transient) // (2 * row) // chunk * chunk
    if whole or block < 1:
        need = k * row + transient if whole else 2 * row + transient
        remedy = "ask for the Gramian instead of the rows" if whole else "use smaller microbatches"
        raise UserError(
            f"memory_budget={memory_budget} bytes is too small: this measurement needs at least "
            f"{need} bytes; raise the budget or {remedy}."
        )
    return Plan(chunk=chunk, block=block)


def _saved_bytes(problem: Problem) -> int:
    """Count the bytes that autograd keeps for the backward of one microbatch."""
    model, batch = problem.model, pytree.tree_leaves(problem.batch)
    present = [*model.parameters(), *model.buffers(), *batch]
    known = {tensor.untyped_storage().data_ptr() for tensor in present}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with kept_buffers(model), hooks:
        mean_loss(problem.loss(model, problem.microbatch(0)), problem.u)
    return sum(saved.values())
