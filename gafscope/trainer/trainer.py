"""The training loop: macrobatches in, decisions, updates, records and checkpoints out."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils import _pytree as pytree

from gafscope.aggregation import GAF, Gate, Mean, Rule, Stateful
from gafscope.distributed.heartbeat import beating
from gafscope.gradients import Loss
from gafscope.gradients.batch_norm import RunningStatistics
from gafscope.gradients.problem import batch_size, trainable
from gafscope.records import RunWriter
from gafscope.trainer.batches import Batches
from gafscope.trainer.best import BestCheckpoint
from gafscope.trainer.calibration import Calibration
from gafscope.trainer.checks import check_macrobatch, check_run, check_settings
from gafscope.trainer.interrupt import Interrupt, end_by
from gafscope.trainer.keep import Made, keep
from gafscope.trainer.on_device import device_step_of
from gafscope.trainer.per_sample import SAMPLES, make_macrobatch
from gafscope.trainer.progress import Progress
from gafscope.trainer.ranks import Ranks
from gafscope.trainer.row import current_lr, described
from gafscope.trainer.session import Session
from gafscope.trainer.state import random_state, restore_random_state
from gafscope.trainer.update import apply_update
from gafscope.trainer.watchdog import Watchdog

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("gafscope")


@final
@dataclass(eq=False)
class Trainer:
    """Train a model on macrobatches of k microbatches, filtered by a rule.

    A rejected step changes nothing: neither parameters nor optimizer, scheduler or BatchNorm's
    running statistics. Rules that visit in order (GAF, HalvingGAF, Mean) stream in the memory of
    two gradients. With a `run_dir`, everything is recorded there, and a run that was interrupted
    goes on, bit for bit on the CPU, when the same trainer is fitted again. Where torch.distributed
    is initialised with K > 1 ranks, each is given the same macrobatches, differentiates k / K of
    their microbatches, and takes the decisions that one process would; rank 0 writes.

    Args:
        model: Any module; it may be on a GPU.
        loss: `(model, batch) -> (B,)` losses or their mean; `supervised(...)` also gives accuracy.
        optimizer: Any torch optimizer of the model's parameters that needs no closure.
        aggregator: The rule. Of one that remembers the trainer takes a copy, which is
            checkpointed, so that every run begins as the rule was given.
        microbatches: k, microbatches a step; "samples" makes every sample one (u = 1), as
            `per_sample_step` does. Buffers that a forward pass writes then stay as they are.
        scheduler: Any torch scheduler. It steps after each update; ReduceLROnPlateau steps after
            each validation since which the model changed, on the accuracy (mode "max") or loss.
        run_dir: Folder of the record; None keeps the scalars in memory only.
        config: What config.yaml says about the run; None describes the trainer.
        name: What stands before the progress bar.
        batch_norm: Which microbatches move BatchNorm's running statistics: "accepted", or "all"
            (as the code released with the paper does).
        warmup_updates: Average plainly for so many updates before the rule takes over; until then
            it neither calibrates itself nor learns.
        max_updates: End after so many updates; None for no limit.
        gate: A control that decides at which steps to update; see `Yoked` and `RandomSkip`.
        on_stall: After 200 rejections in a row "warn" says so and goes on, "stop" ends the run.
        clip_norm: Clip the combined gradient to this norm; None does not.
        precision: "fp32", or "bf16" for autocast.
        compile: Compile the model with torch.compile.
        device_decision: Where the rule allows it (GAF, averaging), decide without waiting for the
            device and mask the update instead of skipping it; faster on a GPU, as a CUDA graph.
        validate_every: Steps between validations.
        checkpoint_every: Steps between checkpoints, which a thread writes while training goes on.
        keep_checkpoints: How many of the newest checkpoints are kept.
        rank_timeout: Seconds that ranks wait for one that is stopped or slow before all end.
        record_layers_every: Steps between Gramians by layer, which hold all k gradients at once;
            0 for never. The whole Gramian is recorded at the same steps, at k = 2 at every step.
        seed: Seed of torch's global generators during training (dropout).
        progress: Show a progress bar.

    Raises:
        UserError: If a setting is out of range or there is nothing to train.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> loss = lambda model, batch: (model(batch).squeeze(1) - 1).square()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Trainer(model, loss, optimizer, aggregator=GAF(tau=0.97), microbatches=2)
        >>> history = trainer.fit([torch.ones(8, 3)], steps=5)
        >>> bool(history.loss.iloc[-1] < history.loss.iloc[0])
        True
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    aggregator: Rule = field(default_factory=GAF)
    microbatches: int | Literal["samples"] = 2
    scheduler: LRScheduler | ReduceLROnPlateau | None = None
    run_dir: str | Path | None = None
    config: Mapping[str, Any] | None = None
    name: str = "train"
    batch_norm: str = "accepted"
    warmup_updates: int = 0
    max_updates: int | None = None
    gate: Gate | None = None
    on_stall: str = "warn"
    clip_norm: float | None = None
    precision: str = "fp32"
    compile: bool = False
    device_decision: bool = False
    validate_every: int = 100
    checkpoint_every: int = 500
    keep_checkpoints: int = 1
    rank_timeout: float = 600.0
    record_layers_every: int = 100
    seed: int = 0
    progress: bool = True

    def __post_init__(self):
        check_settings(self)
        if isinstance(self.aggregator, Stateful):
            self.aggregator = copy.deepcopy(self.aggregator)
        self.seed = int(self.seed)
        if self.microbatches != SAMPLES:
            self.microbatches = int(self.microbatches)
        self.step = self.updates = 0
        self.base_lr = current_lr(self.optimizer)
        self.parameters = trainable(self.model)
        self.device = next(iter(self.parameters.values())).device
        self.statistics = RunningStatistics(self.model)
        self.ranks = Ranks.found()
        if self.ranks is not None:
            self.ranks.check(self.model, self.microbatches, self.aggregator)
        self._macrobatch = make_macrobatch(self)
        self._calibration = Calibration(self)
        self.watchdog = Watchdog()
        self.best = BestCheckpoint()
        self._random: dict[str, Any] | None = None
        self.changed = False
        self.status = ""
        self.rows: list[dict[str, Any]] = []
        self.row: dict[str, Any] = {}
        self.ends_at = 0
        self._device_step = device_step_of(self, self._macrobatch) if self.device_decision else None

    def fit(
        self,
        train_batches: Iterable[Any],
        steps: int,
        validate: Any = None,
        test: Any = None,
    ) -> pd.DataFrame:
        """Train until `steps` macrobatches have been seen, counted from the run's beginning.

        Args:
            train_batches: Macrobatches: pytrees of tensors with k * u samples, microbatch after
                microbatch, or with "samples" with any number. Started anew when it ends. If it has
                `state_dict` and `load_state_dict` (as `MicrobatchSampler` has) a resumed run goes
                on with it where it was; else it is wound forward.
            steps: Steps in all, those of an earlier `fit` or of a resumed run included.
            validate: A batch to validate on; None does not validate.
            test: A batch that is evaluated once at the end, at the last and at the best
                weights by validation, and never used for a choice.

        Returns:
            The run's scalars, one row a step.

        Raises:
            UserError: If a macrobatch does not divide into k microbatches, the run diverges, the
                folder holds another run, or something cannot be written.
            KeyboardInterrupt: On Ctrl-C, after the step was completed and a checkpoint written.
            SystemExit: On SIGTERM likewise, with code 143.
        """
        check_run(self, steps, validates=validate is not None)
        self.ends_at = steps
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with ExitStack() as stack:
            if self.ranks is not None:
                stack.enter_context(beating(self.rank_timeout))
                self.ranks.check_alike(described(self, steps, validate))
            stack.enter_context(torch.random.fork_rng(devices=devices))
            torch.manual_seed(self.seed)
            if self._random is not None:
                restore_random_state(self._random)
            stack.callback(self._keep_random)
            batches = Batches(train_batches, self.seed)
            session = Session(self, batches, steps, stack)
            self.status = self.ending(steps, stalled=self.status == "stalled")
            if not self.status:
                batches.wind(self.step)
                self._loop(batches, steps, validate, session)
            if self.run_dir is not None:
                return session.result(validate, test)
            import pandas as pd

            return pd.DataFrame(self.rows)

    def _keep_random(self) -> None:
        self._random = random_state()

    def ending(self, steps: int, stalled: bool) -> str:
        """Tell how the run has ended.

        Args:
            steps: Steps in all.
            stalled: Whether it has stalled.

        Returns:
            "stalled", "all updates made" or "finished"; nothing while it goes on.
        """
        if stalled and self.on_stall == "stop":
            return "stalled"
        if self.max_updates is not None and self.updates >= self.max_updates:
            return "all updates made"
        return "finished" if self.step >= steps else ""

    def _loop(self, batches: Batches, steps: int, validate: Any, session: Session) -> None:
        """Train until the run has ended or is interrupted."""
        leads = self.ranks is None or self.ranks.leads
        bar = Progress(self.progress and leads, self.step, steps, self.name)
        with bar, Interrupt(patient=self.ranks is not None) as interrupt:
            if self.ranks is not None:
                self.ranks.interrupt = interrupt
            while not self.status:
                row, advice = self.advance(next(batches), validate, session.writer)
                bar.update(
                    loss=row["loss"],
                    accepted=row["accepted"] / len(row["distance_to_sum"]),
                    distance=row["distance_mean"],
                )
                if advice and leads:
                    with bar.aside():
                        log.warning("%s: %s", self.name, advice)
                self.status = self.ending(steps, stalled=advice is not None)
                session.check()
                ended_by = interrupt.requested if self.ranks is None else self.ranks.ended_by
                ends = bool(self.status or ended_by)
                if ends and self._device_step is not None:
                    keep(self, self._device_step.read(), None, session.writer)
                if ends or self.step % self.checkpoint_every == 0:
                    session.save(wait=ends)
                end_by(ended_by)

    def advance(
        self, batch: Any, validate: Any = None, writer: RunWriter | None = None
    ) -> tuple[dict[str, Any], str | None]:
        """Do one step: macrobatch, decision, update, record. `fit` calls it for each step.

        Args:
            batch: A macrobatch.
            validate: A batch to validate on when the step calls for it.
            writer: The record; None keeps the row in memory.

        Returns:
            The newest row of scalars that is known, with `device_decision` maybe an older one,
            and advice for the user when the run has just stalled.

        Raises:
            UserError: As in `fit`.
        """
        check_macrobatch(self, batch_size(batch))
        batch = pytree.tree_map(lambda leaf: leaf.to(self.device, non_blocking=True), batch)
        layers = self.record_layers_every > 0 and self.step % self.record_layers_every == 0
        validates = validate is not None and (self.step + 1) % self.validate_every == 0
        self.model.train()
        device = self._device_step
        if device is not None and device.takes(layers):
            made = device.run(batch, self.step, due=validates or not self.row)
        else:
            made = [] if device is None else device.read()
            made.append(self._decide(batch, layers))
        self.row, advice = keep(self, made, validate if validates else None, writer)
        self.step += 1
        return self.row, advice

    def _decide(self, batch: Any, layers: bool) -> Made:
        """Do one step whose decision is taken here."""
        started = time.perf_counter()
        warming_up = self.updates < self.warmup_updates
        if not warming_up:
            self._calibration.before(batch)
        rule = Mean() if warming_up else self.aggregator
        outcome = self._macrobatch.run(batch, rule, self.step, layers)
        lr, stepped = current_lr(self.optimizer), apply_update(self, outcome)
        return Made(self.step, outcome, stepped, lr, time.perf_counter() - started)
