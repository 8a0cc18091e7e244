"""What `distribute` returns: the last decision, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from gafscope.aggregation import Decision, Recording
from gafscope.distributed.agree import check_parameters
from gafscope.distributed.collectives import all_gather
from gafscope.distributed.decide import Agreed
from gafscope.distributed.options import Options
from gafscope.distributed.overriding import Override
from gafscope.errors import UserError
from gafscope.gradients.batch_norm import RunningStatistics


class Hook(Protocol):
    """What agrees on the gradients, for one way of spreading a model over ranks."""

    group: dist.ProcessGroup
    ranks: int
    own_rows: int

    @property
    def rows_begun(self) -> int:
        """Backwards of the macrobatch at hand that made a row."""
        ...

    def close(self) -> Agreed:
        """End the macrobatch and give what was agreed on."""
        ...

    def left_out(self, agreed: Agreed) -> list[Tensor]:
        """Give the parameters that stay as they are, though the step is taken."""
        ...

    def remove(self) -> None:
        """Put everything back."""
        ...


@final
class Distribution:
    """Ranks that agree on a loop's gradients, until `remove()` or the end of a `with`.

    Attributes:
        decision: The decision of the last step, its rows in the order of the ranks; None before
            the first one. The same on every rank.
        scalars: What the rule adds to the record of the last step.
        step: Steps so far, counted whether they were taken or rejected.
    """

    def __init__(
        self,
        model: nn.Module,
        hook: Hook,
        optimizer: Optimizer,
        scheduler: Any,
        options: Options,
        check_every: int | None,
    ):
        replicas = isinstance(model, DistributedDataParallel)
        self.decision: Decision | None = None
        self.scalars: Mapping[str, float] = {}
        self.step = 0
        self._hook, self._options = hook, options
        self._replica = model.get_submodule("module") if replicas else model
        self._check_every = check_every if replicas else None
        self._statistics = RunningStatistics(model)
        self._running = [
            buffer
            for name, buffer in model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ]
        # Rows whose statistics were collected; None before a macrobatch's first forward.
        self._collected: int | None = None
        self._held = False
        self._stack = ExitStack()
        self._stack.callback(hook.remove)
        self._stack.callback(optimizer.register_step_pre_hook(self._before_step).remove)
        self._stack.callback(model.register_forward_pre_hook(self._before_forward).remove)
        if scheduler is not None:
            self._stack.callback(Override(scheduler, self._step_scheduler).undo)

    def __enter__(self) -> Distribution:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Leave the loop as it was: gradients are averaged again. A second time does nothing."""
        self._held = False
        self._stack.close()

    def _before_forward(self, model: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if self._collected is None:
            self._statistics.begin()
            self._collected = 0
        self._collect()

    def _collect(self) -> None:
        # Not at the end of the forward: activation checkpointing runs parts of it once more.
        if self._collected is not None and self._hook.rows_begun > self._collected:
            self._collected += 1
            self._statistics.collect(all(bool(one.isfinite().all()) for one in self._running))

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(one is not None for one in (*args[1:], kwargs.get("closure"))):
            raise UserError(
                f"{type(optimizer).__name__}.step was given a closure, whose backward would come "
                "after the ranks' agreement; call backward first and then step()."
            )
        self._collect()
        agreed = self._hook.close()
        self._settle_statistics(agreed.decision)
        rule = self._options.rule
        self.decision = agreed.decision
        self.scalars = rule.scalars() if isinstance(rule, Recording) else agreed.scalars
        self._held = not agreed.decision.step
        owned = [p for group in optimizer.param_groups for p in group["params"]]
        # None, since zeros would still move momentum and weight decay.
        for parameter in self._hook.left_out(agreed) if agreed.decision.step else owned:
            parameter.grad = None
        if self._check_every is not None and self.step % self._check_every == 0:
            check_parameters(self._replica, self.step, self._hook.group)
        self.step += 1

    def _settle_statistics(self, decision: Decision) -> None:
        if self._collected is None:
            return
        self._collected = None
        if decision.step:
            self._statistics.gather(lambda own: all_gather(own, self._hook.group))
        self._statistics.commit(self._microbatches(decision))

    def _microbatches(self, decision: Decision) -> list[int]:
        """Give the accepted microbatches of all ranks, in their order."""
        size = self._options.group_size
        groups = decision.accepted.view(self._hook.ranks // size, 1, -1)
        return groups.expand(-1, size, -1).flatten().nonzero().flatten().tolist()

    def _step_scheduler(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return None if self._held else step(*args, **kwargs)
