"""`watch`: the entry to loops that somebody else wrote."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gafscope.aggregation import GAF, Calibrating, RowRule, Rule, Weighting, rows_needed
from gafscope.errors import UserError, unknown_name
from gafscope.instruments.listener import Listener
from gafscope.instruments.log import process_rank
from gafscope.instruments.memory import GHOST, MEMORY
from gafscope.instruments.scaling import LossScale
from gafscope.instruments.schedule import Schedule, as_schedule
from gafscope.instruments.scope import Scope, Settings
from gafscope.instruments.splitter import SAMPLES, check_splittable
from gafscope.instruments.watched import as_optimizers, is_distributed

log = logging.getLogger("gafscope")


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int | Schedule = 10,
    microbatches: int | None = None,
    split: int | str | None = None,
    filter: Rule | None = None,
    rule: Weighting | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    run_dir: str | Path | None = None,
    layers: bool = True,
    memory: str = "rows",
    listeners: Sequence[Listener] = (),
    live: bool = False,
) -> Scope:
    """Watch gradient agreement in a loop that stays as it is.

    The loop accumulates gradients over k backwards and then steps. At every `every`-th step each
    backward's own gradient is captured by hooks, and their Gramian, the distances and what a rule
    would have accepted are recorded, on the loop's own scale. Nothing is changed by that: the
    weights are the same to the last bit. At the other steps nothing is captured.

    With `filter` the rule acts. After each of n backwards `.grad` holds `n sum_i w_i row_i`, so
    that clipping and whatever else comes before the step see the filtered gradient; rules that
    need all rows act on the k-th. When the rule rejects a macrobatch, every `.grad` is None at the
    optimizer's step, so that momentum, weight decay and Adam's state do not move either,
    BatchNorm's running statistics are as before (and else those of the accepted microbatches),
    and the scheduler is held back.

    What happens at the edges: A step of one backward after steps of more (the end of an epoch) is
    not recorded. Backwards whose gradients are emptied without a step are forgotten.
    `autograd.grad` is not taken for training. When parameters are frozen, unfrozen or added, the
    first step after that is not recorded; a filter must be stopped before and started after. A
    step with a closure is watched after the closure has run.

    Args:
        model: The model; it may be compiled or wrapped for data parallelism, where each process
            sees the gradients of its own microbatches.
        optimizer: The loop's optimizer, or several that step together, the first one first.
        every: Steps between recorded ones, from step 0 on; or a schedule: `Every`, `AtSteps`,
            `linear`, `logarithmic`.
        microbatches: k. None counts the backwards between two steps. Filters that decide on all
            rows at once need it.
        split: For loops of one backward a step: "samples" compares the samples of the model's
            batch, a number cuts it into so many microbatches. The ghost engine's hooks sit in the
            loop's own forward and backward, so no row is ever made; for that the loss must be a
            mean or sum over the samples. When a kind of batch is first seen, a few samples are run
            aside to see how the model treats them. One pass backwards through the model's call,
            `autograd.grad` included. Observes only.
        filter: The rule that acts; None observes.
        rule: What would have been accepted, without acting: a weighting, GAF(tau=0.97) by default.
        scheduler: With `filter`, the scheduler that the loop steps after each update; its step
            after a rejected macrobatch is passed over.
        scaler: The loop's GradScaler. Its factor is taken out of what is recorded, and a step that
            it skips is recorded as not stepped; unless it is given, the factor stays in and a step
            that it skips is neither counted nor recorded.
        run_dir: Folder of the record; None for a temporary one. Every further process of a
            distributed run gets a folder of its own beside it.
        layers: Record the Gramian of each parameter as well.
        memory: Where the k rows wait for the step: "rows" as they come, "bf16" in half the
            memory, "cpu" in the host's memory, "disk" in mapped files. With "ghost" no row is
            kept. What each layer is given, and the gradient of what it returns, wait instead, by
            the hooks of `split` in the loop's own passes. A dense layer of p x q then keeps
            u T (p + q) numbers a microbatch (u samples of T positions) instead of p q: good where
            microbatches are small against the model, else dearer. A recorded step costs up to one
            more weight gradient a microbatch. One call of the model before each backward and one
            pass backwards through it; nothing else may add to the gradient. Observes only.
        listeners: Called with each `Record`: loggers, for instance. One that is a context manager
            as well is entered at `start` and left at `stop`.
        live: Show the loop while it runs, in the first process only: in Jupyter a panel below the
            cell, redrawn as often as 2% of the loop's time allow (`Run.panel` draws it
            afterwards); in a terminal one progress line, and nothing where there is none.

    Returns:
        The scope, not started yet: use it in a `with`, or call `start` and `stop`.

    Raises:
        UserError: If a setting is out of range, the optimizer does not own the model's parameters,
            or these cannot be watched: sharded, complex or sparse ones; or live=True in Jupyter
            without ipywidgets.

    Example:
        >>> import torch
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model, optimizer, every=1) as scope:
        ...     for _ in range(2):
        ...         for inputs in torch.ones(4, 8, 3):
        ...             loss = (model(inputs) - 1).square().mean() / 4
        ...             loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> scope.run.matrix(0).shape
        (4, 4)
    """
    filters = filter is not None
    optimizers = as_optimizers(optimizer)
    _check_rule(filter, rule, microbatches)
    if microbatches is not None and (not isinstance(microbatches, Integral) or microbatches < 2):
        raise UserError(
            "microbatches is the number of backwards from step to step and must be at least 2, "
            f"but is {microbatches!r}; leave it out to count them."
        )
    _check_split(split, filters, microbatches, model)
    _check_memory(memory, split, filters, model)
    if filters and is_distributed(model):
        raise UserError(
            "filter=... decides in each process alone, so that the processes of a "
            "DistributedDataParallel model would diverge; use gafscope.distribute, or watch "
            "without a filter."
        )
    if filters and scheduler is None and hasattr(optimizers[0].step, "_wrapped_by_lr_sched"):
        log.warning(
            "watch: a scheduler steps after rejected macrobatches too, which cannot be prevented "
            "unless it is given: watch(..., scheduler=scheduler)."
        )
    settings = Settings(
        model=model,
        optimizers=optimizers,
        schedule=as_schedule(every),
        microbatches=None if microbatches is None else int(microbatches),
        rule=filter if filter is not None else (GAF(tau=0.97) if rule is None else rule),
        filters=filters,
        scheduler=scheduler,
        scale=LossScale(scaler),
        layers=layers,
        memory=memory,
        split=split,
    )
    if live and process_rank() == 0:
        from gafscope.live import live_view

        listeners = [*listeners, live_view(settings.described())]
    return Scope(settings, run_dir, listeners)


def _check_split(
    split: int | str | None, filters: bool, microbatches: int | None, model: nn.Module
) -> None:
    if split is None:
        return
    number = isinstance(split, int) and not isinstance(split, bool) and split >= 2
    if split != SAMPLES and not number:
        raise UserError(f"split must be 'samples' or a number of at least 2, but is {split!r}.")
    if filters:
        raise UserError(
            "filter=... needs the gradients of several backwards a step, but split measures one "
            "backward; use gafscope.per_sample_step to filter samples."
        )
    if microbatches is not None:
        raise UserError(
            f"split={split!r} is for loops of one backward a step, microbatches={microbatches} for "
            "those of several; give one of them."
        )
    check_splittable(model, split)


def _check_memory(memory: str, split: int | str | None, filters: bool, model: nn.Module) -> None:
    if memory not in MEMORY:
        raise unknown_name("memory", memory, MEMORY)
    if memory != GHOST:
        return
    if split is not None:
        raise UserError(
            f"memory='ghost' is for loops of several backwards a step; split={split!r} keeps no "
            "rows anyway, so leave memory out."
        )
    if filters:
        raise UserError(
            "filter=... adds gradients up, which memory='ghost' does not keep; use memory='bf16'."
        )
    check_splittable(model, split)


def _check_rule(filter: Rule | None, rule: Weighting | None, microbatches: int | None) -> None:
    if filter is not None and rule is not None:
        raise UserError(
            f"filter={filter!r} acts and is recorded, so rule={rule!r} has no place beside it; "
            "give one of them."
        )
    chosen = filter if filter is not None else rule
    if chosen is None:
        return
    if isinstance(chosen, type) or not (callable(chosen) or isinstance(chosen, RowRule)):
        raise UserError(
            "filter and rule take a rule, such as GAF(tau=0.97), or a function from a Gramian to "
            f"a Decision, but were given {chosen!r}."
        )
    if isinstance(chosen, Calibrating):
        raise UserError(
            f"{type(chosen).__name__} wants Gramians of its own to calibrate itself, which a "
            "watched loop does not compute; use GAF with the tau of gafscope.calibrate."
        )
    if filter is None and isinstance(chosen, RowRule):
        raise rows_needed(chosen, "as rule=..., which only looks at inner products")
    sequential = getattr(chosen, "fold", None) is not None
    if filter is not None and not sequential and microbatches is None:
        raise UserError(
            f"{type(chosen).__name__} decides on all microbatches at once, so it must know when "
            "the last one has come: give microbatches=k, the number of backwards a step."
        )
