"""FSDP2: every module's reduce-scatter becomes an exchange of shards, and an agreement follows.

FSDP sends each rank the sum of all ranks' gradients of its shard. Here each rank receives every
rank's own gradient of its shard, which is as many bytes. When the backward is over, all ranks
take one decision, and each combines its shard into the `.grad` that FSDP left empty there. The
update stays sharded, so nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from gafscope.distributed.collectives import sum_over_ranks
from gafscope.distributed.decide import Agreed, decide_on_shards, wants_layers
from gafscope.distributed.options import Options
from gafscope.distributed.shards import Shards
from gafscope.errors import UserError
from gafscope.gradients import Gramian


@final
@dataclass(eq=False)
class _Received:
    """What one module's exchange of one backward brings: (K, s), and FSDP's empty (s,)."""

    rows: Tensor
    output: Tensor
    send: Tensor
    work: Any


@final
class RowScatter:
    """What an FSDP module calls in place of its reduce-scatter.

    Args:
        begins: Called before each exchange.
    """

    def __init__(self, begins: Callable[[], None]):
        self.received: list[_Received] = []
        self._begins = begins

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Give memory, as `torch.distributed.fsdp` asks for it."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Start to exchange; the output is left at zero until the decision."""
        self._begins()
        output_tensor.zero_()
        rows = torch.empty_like(input_tensor)
        work = dist.all_to_all_single(rows, input_tensor, group=group, async_op=True)
        rows = rows.view(dist.get_world_size(group), -1)
        self.received.append(_Received(rows, output_tensor, input_tensor, work))


@final
class ShardedHook:
    """Decides for one FSDP2 model, step by step.

    Args:
        model: The model, to which `fully_shard` was applied last.
        parameters: Its trainable parameters by name.
        options: How to decide.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor], options: Options):
        modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._state: Any = _state(modules[0])
        self.group, self.ranks, self.rank = _check(modules, parameters)
        self.agreed: Agreed | None = None
        self.own_rows = 0
        self.step = 0
        self._options, self._parameters = options, parameters
        self._task = -1
        self._scatters: list[tuple[Any, RowScatter, Any]] = []
        for module in modules:
            for group in _state(module)._fsdp_param_groups:
                scatter = RowScatter(self._begin)
                self._scatters.append((group, scatter, group._reduce_scatter_comm))
                module.set_custom_reduce_scatter(scatter)  # pyright: ignore[reportArgumentType]

    def remove(self) -> None:
        """Let FSDP average again."""
        for group, _, before in self._scatters:
            group._reduce_scatter_comm = before

    def close(self) -> Agreed:
        """End the macrobatch at the optimizer's step, and give what was agreed on.

        Raises:
            UserError: If no last backward ran since the last step.
        """
        agreed, self.agreed = self.agreed, None
        if agreed is None:
            raise UserError(
                "The optimizer steps, but the ranks have agreed on nothing since its last step; "
                "the last backward of each step must run with set_requires_gradient_sync(True) and "
                "set_is_last_backward(True)."
            )
        self.own_rows = 0
        self.step += 1
        return agreed

    @property
    def rows_begun(self) -> int:
        """Synchronised backwards of the macrobatch at hand."""
        return self.own_rows

    def left_out(self, agreed: Agreed) -> list[Tensor]:
        """Give the parameters that stay as they are, though the step is taken."""
        return [self._parameters[name] for name in agreed.left_out]

    def _begin(self) -> None:
        """See the first exchange of a backward, and be called when the backward is over."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        if self.agreed is not None:
            raise UserError(
                "A second backward was synchronised before the optimizer's step, but the ranks "
                "have agreed on this step's update already; call set_is_last_backward(False) on "
                "the model for all but the last one (each is then a row of its own), or "
                "set_requires_gradient_sync(False) (they add up to one row)."
            )
        self._task = task
        self.own_rows += 1
        engine: Any = Variable._execution_engine
        # FSDP's own callback was queued before, so the last gradients are on their way by then.
        engine.queue_callback(self._over)

    @torch.no_grad()
    def _over(self) -> None:
        self._task = -1
        if not self._state._state_ctx.is_last_backward:
            return
        homes, parts = [], []
        for _, scatter, _ in self._scatters:
            received, scatter.received = scatter.received, []
            if received:
                home, shards = self._shards(received)
                homes.append(home)
                parts.append(shards)
        layers = wants_layers(self._options.rule)
        sums = [part.partial_gramian(layers) for part in parts]
        whole = torch.stack([matrix for matrix, _ in sums]).sum(0)
        named = {name: matrix for _, matrices in sums for name, matrix in matrices.items()}
        matrix, *summed = sum_over_ranks(whole, *named.values(), group=self.group)
        gramian = Gramian(matrix, dict(zip(named, summed, strict=True)))
        order = self._options.visits(gramian.k, self.step)
        agreed = decide_on_shards(
            self._options.rule, parts, gramian, self._parameters, order, self.group
        )
        for home, update in zip(homes, agreed.updates or [], strict=agreed.updates is not None):
            # FSDP's own scale: the ranks' mean of the sum of their rows.
            home.copy_(update.mul_(self.own_rows))
        self.agreed = agreed

    def _shards(self, received: Sequence[_Received]) -> tuple[Tensor, Shards]:
        for one in received:
            one.work.wait()
        if len(received) != self.own_rows:
            raise UserError(
                f"A module took part in {len(received)} of the {self.own_rows} backwards of this "
                "step, so that its rows cannot be told apart; run every module in every backward."
            )
        rows_ks = torch.stack([one.rows for one in received], 1).flatten(0, 1)
        home = received[0].output
        own = {}
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            assert gradient is None or isinstance(gradient, DTensor)
            local = None if gradient is None else gradient._local_tensor
            if local is not None and _shares(local, home):
                own[name] = (local.storage_offset(), local.storage_offset() + local.numel())
        names = [
            name for name, kept in self._parameters.items() if name in own or kept.grad is None
        ]
        used = torch.ones(len(rows_ks), len(names), dtype=torch.bool)
        shards = Shards(rows_ks, used, names, own, self.ranks)
        return home, shards.averaged(self._options.group_size)


def _shares(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _state(module: Any) -> Any:
    return module._get_fsdp_state()


def _check(
    modules: Sequence[Any], parameters: dict[str, Tensor]
) -> tuple[dist.ProcessGroup, int, int]:
    """Refuse what cannot be exchanged row by row; give the group, its size and the own rank."""
    for name, parameter in parameters.items():
        if not isinstance(parameter, DTensor):
            raise UserError(
                f"'{name}' is not sharded while other parameters are, so FSDP does not reduce its "
                "gradient; apply fully_shard to the whole model as well."
            )
        if parameter.device_mesh.ndim != 1:
            raise UserError(
                f"'{name}' is sharded over a mesh of {parameter.device_mesh.ndim} dimensions "
                "(HSDP, tensor parallelism), whose rows are spread over several groups; use a "
                "mesh of one dimension."
            )
    groups = [group for module in modules for group in _state(module)._fsdp_param_groups]
    for group in groups:
        policy = group.mp_policy
        reduced = policy.reduce_dtype or policy.param_dtype
        kinds = {param.sharded_param.dtype for param in group.fsdp_params}
        if reduced is not None and kinds != {reduced}:
            raise UserError(
                f"The gradients are reduced in {reduced} and the parameters kept in "
                f"{', '.join(map(str, kinds))}, so that they do not share memory; use "
                "MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)."
            )
        if any(param.offload_to_cpu for param in group.fsdp_params):
            raise UserError(
                "CPUOffloadPolicy moves gradients away before the ranks can agree on them; leave "
                "it out."
            )
        if group.gradient_divide_factor is not None:
            raise UserError(
                "set_gradient_divide_factor would scale the rows; scale the loss instead."
            )
    mesh = next(iter(parameters.values())).device_mesh  # pyright: ignore[reportAttributeAccessIssue]
    return mesh.get_group(), mesh.size(), mesh.get_local_rank()
