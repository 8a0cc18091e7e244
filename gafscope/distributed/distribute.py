"""`distribute`: the ranks of somebody's own DDP or FSDP2 loop agree before they step."""

from __future__ import annotations

import sys
from numbers import Integral
from typing import Any, get_args

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from gafscope.aggregation import Rule, Stateful
from gafscope.aggregation.grouped import check_scoped
from gafscope.distributed.agree import all_or_none, check_same, described_parameters
from gafscope.distributed.collectives import group_ranks
from gafscope.distributed.decide import check_shardable
from gafscope.distributed.handle import Distribution, Hook
from gafscope.distributed.hook_ddp import BucketHook
from gafscope.distributed.hook_fsdp import ShardedHook
from gafscope.distributed.options import Options, Scope
from gafscope.distributed.order import Order, check_order
from gafscope.errors import UserError, unknown_name


def distribute(
    ddp_model: nn.Module,
    optimizer: Optimizer,
    rule: Rule,
    scheduler: Any = None,
    *,
    scope: Scope = "model",
    order: Order = "rank",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    group_size: int = 1,
    check_every: int | None = 1000,
) -> Distribution:
    """Let the ranks of a DDP or FSDP2 loop agree on which micro-gradients to follow.

    The loop stays as it is. Each backward of a rank is a row (a micro-gradient of its own):
    with K ranks and m backwards a step k = m * K rows, visited rank by rank. In place of the
    average `.grad` holds `m sum_i w_i row_i` after the last backward, on the loop's own scale,
    whether or not it divides its loss by m: GAF(tau=2) gives plain DDP's gradient. Rows move as
    shards, as many bytes as one all-reduce for m = 1, (m + 1) / 2 of it else, and k^2 doubles; no
    rank ever holds another's whole row, and every rank takes the same decision.

    A rejected step changes nothing on any rank: the optimizer is given no gradients, so that
    momentum, weight decay and Adam's state stay as they are, the scheduler is held back, and
    BatchNorm's running statistics are put back. After an accepted step they are what the accepted
    microbatches of all ranks leave, in the order of the ranks, on every rank. A row that is not
    finite is rejected everywhere.

    With DDP, backwards inside `no_sync()` are rows of their own. With FSDP2 (`fully_shard`), so are
    backwards that are synchronised under `set_is_last_backward(False)`; what accumulates under
    `set_requires_gradient_sync(False)` adds up to one row.

    Args:
        ddp_model: A `DistributedDataParallel` model, or one that `fully_shard` was applied to.
        optimizer: The loop's optimizer.
        rule: A weighting, or a rule that works on shards: SignAgreement, TrimmedMean,
            CoordinateMedian, ByLayer, ByBucket.
        scheduler: The loop's scheduler, to be held back after rejected steps.
        scope: "model" takes one decision a step. "bucket" lets each of DDP's buckets decide on its
            own rows, as inside a Ring-AllReduce: another algorithm.
        order: Visiting order of the rows: "rank", "rotate" (one later at each step) or "shuffle".
        seed: Of the order; the same on every rank.
        dtype: Type in which DDP's rows and updates travel, such as torch.bfloat16 for half the
            bytes; None for the parameters' own. (FSDP2 has its MixedPrecisionPolicy for that.)
        group_size: Rows of this many neighbouring ranks are averaged to one first, so that the
            rule sees k / group_size rows: for many ranks.
        check_every: Steps between comparisons of the replicas, to the bit; None for none.

    Returns:
        A handle with the last `decision`. `remove()`, or the end of a `with`, undoes it all.

    Raises:
        UserError: If the ranks were started differently, there is only one, the model is not
            spread over ranks, or an argument does not fit; on every rank.
    """
    model = getattr(ddp_model, "_orig_mod", ddp_model)
    group = getattr(model, "process_group", None)  # DDP's own, or the whole job
    ranks, _ = group_ranks(group)
    options = Options(rule, scope, order, seed, dtype, group_size)

    def check() -> dict[str, Any]:
        _check_model(model)
        _check_options(options, check_every, ranks, sharded=isinstance(model, FSDPModule))
        return _trainable(model, optimizer)

    parameters = all_or_none(check, group)
    check_same({**_versions(), **_described(options), **described_parameters(parameters)}, group)
    hook: Hook
    if isinstance(model, DistributedDataParallel):
        hook = BucketHook(model, parameters, options)
    else:
        hook = ShardedHook(model, parameters, options)
    return Distribution(model, hook, optimizer, scheduler, options, check_every)


def _check_model(model: nn.Module) -> None:
    name = type(model).__name__
    if name == "FullyShardedDataParallel":
        raise UserError(
            "FullyShardedDataParallel is FSDP's first version, whose gradients cannot be told "
            "apart by rank; use torch.distributed.fsdp.fully_shard."
        )
    if not isinstance(model, DistributedDataParallel | FSDPModule):
        raise UserError(
            f"distribute needs a model that is spread over ranks, but was given a plain {name}; "
            "wrap it in torch.nn.parallel.DistributedDataParallel (or apply fully_shard), or use "
            "gafscope.Trainer under torchrun."
        )
    if getattr(model, "mixed_precision", None) is not None:
        raise UserError(
            "DistributedDataParallel(mixed_precision=...) has a communication hook of its own; "
            "use torch.autocast, and dtype=torch.bfloat16 of distribute."
        )
    for module_name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise UserError(
                f"'{module_name}' is SyncBatchNorm, which normalises each rank's microbatch by all "
                "ranks' samples, so that no row is its rank's own; use BatchNorm or GroupNorm."
            )


def _trainable(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"distribute needs the loop's torch optimizer, but got {optimizer!r}.")
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    ignored = getattr(model, "parameters_to_ignore", ())
    named = {
        name: parameter
        for name, parameter in inner.named_parameters()
        if parameter.requires_grad and name not in ignored
    }
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    known = {id(p) for p in inner.parameters()}
    if not named or owned - known:
        raise UserError(
            f"The optimizer ({type(optimizer).__name__}) holds {len(owned - known)} parameters "
            f"that are not the model's, which has {len(named)} to train; make it from "
            "ddp_model.parameters(), after fully_shard where that is used."
        )
    return named


def _check_options(options: Options, check_every: int | None, ranks: int, sharded: bool) -> None:
    check_shardable(options.rule)
    getattr(options.rule, "fold", None)  # one that was never calibrated says so here
    check_order(options.order)
    if options.scope not in get_args(Scope):
        raise unknown_name("scope", options.scope, get_args(Scope))
    if options.scope == "bucket":
        check_scoped(options.rule, "scope='bucket'")
    if sharded and (options.scope == "bucket" or options.dtype is not None):
        raise UserError(
            "scope='bucket' and dtype are for DistributedDataParallel; FSDP2 has no buckets, and "
            "its MixedPrecisionPolicy says in which type gradients travel."
        )
    if options.dtype is not None and not options.dtype.is_floating_point:
        raise UserError(
            f"dtype must be a floating type such as torch.bfloat16, not {options.dtype}."
        )
    size = options.group_size
    if not isinstance(size, Integral) or size < 1 or ranks % size or (size > 1 and size == ranks):
        raise UserError(
            f"group_size is a number of ranks that divides the {ranks} ranks into at least two "
            f"groups, but is {size!r}; 1 compares every rank."
        )
    if check_every is not None and (not isinstance(check_every, Integral) or check_every < 1):
        raise UserError(
            f"check_every counts steps and must be at least 1, or None, but is {check_every!r}."
        )


def _versions() -> dict[str, object]:
    # Not by an import: the package's own name stands above all its parts.
    own = getattr(sys.modules["gafscope"], "__version__", None)
    return {"gafscope's version": own, "torch's version": torch.__version__}


def _described(options: Options) -> dict[str, object]:
    state = options.rule.state_dict() if isinstance(options.rule, Stateful) else None
    return {**options.described(), "state of the rule": state}
