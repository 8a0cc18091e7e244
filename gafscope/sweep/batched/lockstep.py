"""Trials that stand at one step and make the next ones together."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from gafscope.aggregation import Decision, Mean, Recording
from gafscope.errors import UserError
from gafscope.gradients import Supervised
from gafscope.sweep.batched.decide import Decisions, decide
from gafscope.sweep.batched.member import Member
from gafscope.sweep.batched.stack import Stack, gramians
from gafscope.trainer.interrupt import Interrupt, end_by
from gafscope.trainer.job import Job
from gafscope.trainer.progress import Progress
from gafscope.trainer.row import current_lr

log = logging.getLogger("gafscope")


@final
class Lockstep:
    """Trains trials together.

    Args:
        members: The trials, which stand at one step.
        name: What stands before the progress bar.
    """

    def __init__(self, members: Sequence[Member], name: str):
        self._members, self._name = list(members), name
        self._trainers = [member.job.trainer for member in members]
        self._settings = members[0].settings
        self._stack = make_stack([member.job for member in members])
        self._k = members[0].job.batches.microbatches
        self._step = self._trainers[0].step
        self._lrs = [current_lr(trainer.optimizer) for trainer in self._trainers]
        self._mean = Mean()
        # Protocols are slow to check, and no trial changes its rule.
        rules = [trainer.aggregator for trainer in self._trainers]
        self._recording = [rule if isinstance(rule, Recording) else None for rule in rules]
        batches = [member.job.dataset.validation.batch() for member in members]
        self._validation = tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
        for trainer in self._trainers:
            trainer.model.train()

    def run(self, until: int) -> None:
        """Train; at the end, and now and then, every trial's checkpoint is written.

        Args:
            until: The step to train to.

        Raises:
            KeyboardInterrupt: On Ctrl-C, after checkpoints were written; SystemExit on SIGTERM.
        """
        shown = any(member.settings.progress for member in self._members)
        with Progress(shown, self._step, until, self._name) as bar, Interrupt() as interrupt:
            while self._step < until and self._going():
                self._advance(bar)
                ends = bool(self._step == until or interrupt.requested)
                if ends or self._step % self._settings.checkpoint_every == 0:
                    self._save()
                end_by(interrupt.requested)

    def _going(self) -> list[tuple[int, Member]]:
        return [(t, member) for t, member in enumerate(self._members) if member.error is None]

    def _advance(self, bar: Progress) -> None:
        """Make one step of each trial."""
        started = time.perf_counter()
        every = self._settings.record_layers_every
        measured = every > 0 and self._step % every == 0
        drawn = [next(member.job.batches) for member in self._members]
        inputs, targets = (piled(parts, self._k) for parts in zip(*drawn, strict=True))
        rows, losses, accuracies = self._stack.gradients(inputs, targets)
        matrices, layers = gramians(rows), self._stack.layers(rows) if measured else None
        rules: list[Any] = [
            self._mean if trainer.updates < trainer.warmup_updates else trainer.aggregator
            for trainer in self._trainers
        ]
        decisions = decide(rules, matrices, layers)
        self._update(rows, decisions.each)
        means = losses.double().mean(1).tolist(), accuracies.double().mean(1).tolist()
        # What a run that streams would not have known is not recorded here either.
        known = [self._k == 2 or measured or getattr(rule, "fold", None) is None for rule in rules]
        validations = self._validate()
        for t, member in self._going():
            row = self._row(t, decisions, means[0][t], means[1][t], known[t]) | validations[t]
            # A step's time is shared by all of them.
            row["seconds"] = (time.perf_counter() - started) / len(self._members)
            self._record(member, decisions.each[t], row, bar)
            writer = member.session.writer
            if known[t] and writer is not None:
                writer.gramians(self._step, matrices[t], layers[t] if layers else {})
        self._step += 1
        accepted = sum(decision.step for decision in decisions.each) / len(rules)
        bar.update(loss=sum(means[0]) / len(rules), stepped=accepted)

    def _update(self, rows: Tensor, decisions: Sequence[Decision]) -> None:
        weights = torch.stack([decision.weights for decision in decisions])
        steps = [
            decision.step and member.error is None
            for decision, member in zip(decisions, self._members, strict=True)
        ]
        finite = bool(torch.stack([decision.finite for decision in decisions]).all())
        self._stack.step(rows, weights, torch.tensor(steps), finite)
        for trainer, stepped in zip(self._trainers, steps, strict=True):
            trainer.updates += stepped
            trainer.changed = trainer.changed or stepped

    def _row(
        self, t: int, decisions: Decisions, loss: float, accuracy: float, known: bool
    ) -> dict[str, Any]:
        """Make the row that the trainer's own `scalar_row` makes."""
        decision, recording = decisions.each[t], self._recording[t]
        finite = decision.finite.tolist()
        row = {
            "step": self._step,
            "loss": loss,
            "accuracy": accuracy,
            "accepted": sum(decision.accepted.tolist()),
            "stepped": decision.step,
            "distance_mean": decisions.mean_distances[t] if known else math.nan,
            "distance_to_sum": decision.distances.tolist(),
            "not_finite": [i for i, is_finite in enumerate(finite) if not is_finite],
            "grad_norm": decisions.norms[t],
            "lr": self._lrs[t],
        }
        return row if recording is None else row | dict(recording.scalars())

    def _validate(self) -> list[dict[str, float]]:
        """Validate where the step calls for it."""
        if (self._step + 1) % self._settings.validate_every:
            return [{} for _ in self._members]
        results = self._stack.evaluate(*self._validation)
        for t, (trainer, result) in enumerate(zip(self._trainers, results, strict=True)):
            self._stack.hand_out(t)
            trainer.best.see(self._step, trainer.model, result)
            trainer.changed = False
        return [{f"validation_{key}": v for key, v in result.items()} for result in results]

    def _record(
        self, member: Member, decision: Decision, row: dict[str, Any], bar: Progress
    ) -> None:
        """Write down a trial's step; one that diverges ends here, and the others go on."""
        trainer, writer = member.job.trainer, member.session.writer
        assert writer is not None
        try:
            advice = trainer.watchdog.see(self._step, decision)
            writer.scalars(row)
        except UserError as error:
            member.error = error
            return
        if advice:
            with bar.aside():
                log.warning("%s: %s", trainer.run_dir, advice)
        trainer.step += 1
        trainer.status = trainer.ending(member.settings.steps, stalled=False)

    def _save(self) -> None:
        """Write the checkpoint of each trial."""
        for t, member in self._going():
            trainer = self._trainers[t]
            self._stack.hand_out(t)
            if trainer.updates:
                self._stack.hand_out_momentum(t)
            member.session.save(wait=True)


def make_stack(jobs: Sequence[Job]) -> Stack:
    """Stack the networks of some jobs.

    Args:
        jobs: Jobs of one shape; they stay as they are.
    """
    trainers = [job.trainer for job in jobs]
    loss = trainers[0].loss
    assert isinstance(loss, Supervised)
    return Stack(
        [trainer.parameters for trainer in trainers],
        [trainer.optimizer for trainer in trainers],
        trainers[0].model,
        loss,
    )


def piled(parts: Sequence[Tensor], k: int) -> Tensor:
    """Lay the macrobatches of T trials on each other.

    Args:
        parts: T tensors (k * u, ...).
        k: Microbatches of each.

    Returns:
        (T, k, u, ...).
    """
    return torch.stack(list(parts)).unflatten(1, (k, -1))
