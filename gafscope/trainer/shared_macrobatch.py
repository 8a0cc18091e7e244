"""One macrobatch on several ranks: own micro-gradients, shards of all, one decision, one update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from gafscope import geometry
from gafscope.aggregation import RowRule, Rule
from gafscope.distributed import Agreed, ShardExchange, Shards, decide_on_shards
from gafscope.distributed.agree import hashed
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.gradients.problem import batch_size
from gafscope.gradients.running import Gradient, RunningVector
from gafscope.trainer.macrobatch import Outcome, update_norm
from gafscope.trainer.microbatch import Microbatches
from gafscope.trainer.ranks import Ranks


@final
@dataclass(eq=False)
class SharedMacrobatch:
    """Computes macrobatches of one model together with the other ranks.

    Args:
        microbatches: Differentiates them.
        ranks: The ranks.
    """

    microbatches: Microbatches
    ranks: Ranks
    _products: geometry.StreamingProducts = field(default_factory=geometry.StreamingProducts)
    _checked: bool = False

    def __post_init__(self):
        self._exchange = ShardExchange(self.microbatches.parameters)

    def run(self, batch: Any, rule: Rule, step: int, layers: bool) -> Outcome:
        """Differentiate the own microbatches and decide on all of them, as every rank does.

        Args:
            batch: A pytree of tensors with k * u samples, the same on every rank.
            rule: The rule.
            step: The step.
            layers: Compute the Gramian by layer.

        Returns:
            The outcome, the same on every rank. Its Gramian is known at every step, since every
            rank decides on it. Parameters are untouched and every `.grad` is None.

        Raises:
            UserError: If the loss returns a wrong shape, the rule contradicts itself, the forward
                pass writes buffers other than running statistics, or a rank is gone.
        """
        made, self.ranks.step = self.microbatches, step
        made.begin()
        if not self._checked:
            self.ranks.check_alike(_described(batch))
            model: Any = made.model
            self.ranks.check_equal(model)
        written = {} if self._checked else _buffers(made)
        size = batch_size(batch) // made.count
        own = self.ranks.own(made.count)
        gradients = [made.gradient(batch, step, i, size) for i in own]
        made.draw_for(step, made.count)
        self._check_buffers(written)
        made.statistics.gather(self.ranks.gather)
        with self.ranks.talking():
            shards = self._exchange.share(gradients)
        gramian, losses, accuracies = self._sums(shards, layers or isinstance(rule, RowRule))
        parameters = dict(made.parameters)
        order = list(range(made.count))
        with self.ranks.talking():
            agreed = decide_on_shards(rule, [shards], gramian, parameters, order, None)
            update = self._collect(shards, agreed)
        if isinstance(rule, RowRule):
            norm = math.sqrt(self._products(update, [])[0])
        else:
            norm = update_norm(agreed.decision, gramian)
        running = RunningVector()
        running.tensors = update
        return Outcome(
            agreed.decision,
            losses.tolist(),
            accuracies.tolist(),
            running if agreed.updates is not None else None,
            norm,
            gramian,
            scalars=agreed.scalars,
        )

    def _sums(self, shards: Shards, layers: bool) -> tuple[Gramian, Tensor, Tensor]:
        """Add up what each rank knows a part of, in one small collective."""
        made, own = self.microbatches, self.ranks.own(self.microbatches.count)
        values = torch.zeros(2, made.count, dtype=torch.float64)
        values[:, own.start : own.stop] = torch.tensor([made.losses, made.accuracies]).double()
        matrix, matrices = shards.partial_gramian(layers)
        matrix, values, *sums = self.ranks.sum(matrix, values, *matrices.values())
        named = dict(zip(matrices, sums, strict=True))
        return Gramian(matrix, named, engine="loop"), values[0], values[1]

    def _collect(self, shards: Shards, agreed: Agreed) -> Gradient:
        if agreed.updates is None:
            return []
        update = shards.gather(agreed.updates[0], agreed.decision.accepted)
        names = self.microbatches.parameters
        return [
            None if name in agreed.left_out else tensor
            for name, tensor in zip(names, update, strict=True)
        ]

    def _check_buffers(self, before: Mapping[str, tuple[int, int]]) -> None:
        """Refuse a model that writes its own buffers, which would differ from rank to rank."""
        if self._checked:
            return
        self._checked = True
        after = _buffers(self.microbatches)
        for name, state in after.items():
            if before.get(name) != state:
                raise UserError(
                    f"The model's forward pass writes its buffer '{name}', which every rank would "
                    "write differently; train it in one process, without torchrun. (BatchNorm's "
                    "running statistics are shared.)"
                )


def _described(batch: Any) -> dict[str, object]:
    leaves = pytree.tree_leaves(batch)
    content = [int(hashed(leaf)) for leaf in leaves]
    return {"samples of a macrobatch": batch_size(batch), "first macrobatch (hash)": content}


def _buffers(microbatches: Microbatches) -> dict[str, tuple[int, int]]:
    """Give name -> (place, number of writes) of all buffers but running statistics."""
    model: Any = microbatches.model
    modules = model.named_modules()
    return {
        f"{prefix}.{name}" if prefix else name: (buffer.data_ptr(), buffer._version)
        for prefix, module in modules
        if not isinstance(module, _NormBase)
        for name, buffer in module._buffers.items()
        if buffer is not None
    }
