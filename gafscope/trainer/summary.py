"""The final numbers of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gafscope.trainer.evaluate import evaluate

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer


def summarize(trainer: Trainer, validate: Any, test: Any) -> dict[str, Any]:
    """Evaluate the last weights, and the best ones by validation.

    Args:
        trainer: The trainer, after its last step; its weights stay as they are.
        validate: A batch that served for validation; None leaves it out.
        test: A batch that served for nothing; None leaves it out.

    Returns:
        `status`, `steps`, `updates`, `validation_loss`, `validation_accuracy`, `test_loss`,
        `test_accuracy`, and, where there was a validation, `best_step` and the same four of the
        weights that it found best, with `best_` before their names.
    """
    numbers: dict[str, Any] = {
        "status": trainer.status,
        "steps": trainer.step,
        "updates": trainer.updates,
    }
    splits = {"validation": validate, "test": test}
    given = {name: batch for name, batch in splits.items() if batch is not None}
    numbers |= _evaluate(trainer, given, "")
    if trainer.best.step >= 0:
        numbers["best_step"] = trainer.best.step
        last = trainer.best.restore(trainer.model)
        try:
            numbers |= _evaluate(trainer, given, "best_")
        finally:
            trainer.model.load_state_dict(last)
    return numbers


def _evaluate(trainer: Trainer, batches: dict[str, Any], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}{name}_{key}": value
        for name, batch in batches.items()
        for key, value in evaluate(trainer.model, trainer.loss, batch, trainer.ranks).items()
    }
