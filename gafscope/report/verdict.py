"""What a run's numbers say, in plain sentences that claim no more than the numbers do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

from gafscope.records import Run
from gafscope.report.facts import Facts, Trend

_NOTICEABLE_DISTANCE = 0.02
_NOTICEABLE_SHARE = 0.02
_GAP = 0.10
_LONG_IDLE = 20
# Mean cosine distance below -> what it is called.
_WORDS = (
    (0.5, "agreed strongly"),
    (0.9, "agreed in part"),
    (0.98, "agreed little"),
    (1.02, "hardly agreed: near 1 they are orthogonal, as unrelated directions would be"),
    (math.inf, "pulled against each other on average"),
)


@final
@dataclass(frozen=True)
class Finding:
    """One point of a verdict.

    Attributes:
        topic: Two or three words.
        text: Sentences.
        warning: Whether the reader should look into it.
    """

    topic: str
    text: str
    warning: bool = False


def judge(run: Run, facts: Facts) -> list[Finding]:
    """Say what a run's record shows.

    Args:
        run: The run.
        facts: Its numbers.

    Returns:
        The findings, in the order in which a reader asks for them.
    """
    unit = "samples" if run.config.get("microbatches") == "samples" else "microbatches"
    found = [
        _progress(run, facts),
        _agreement(facts, unit),
        _acceptance(facts, unit, observed=run.config.get("mode") == "observe"),
        _learning(facts),
        _generalisation(facts),
        _wrong_labels(run.config.get("label_noise"), facts),
        _finiteness(facts, unit),
        Finding("What this cannot tell", _LIMITS),
    ]
    return [finding for finding in found if finding is not None]


_LIMITS = (
    "This is one run: it shows what happened here, not that its rule is better or worse than "
    "another. A rule that skips updates also stops earlier and moves less, so compare it with "
    "averaging and with a control that makes as many updates (--yoked-to), over several seeds."
)


def percent(share: float) -> str:
    """Write a share as a percentage that never rounds to all or nothing.

    Args:
        share: In [0, 1].

    Returns:
        E.g. "12.5%".

    Example:
        >>> percent(0.125), percent(0.99999), percent(1.0), percent(0.0001)
        ('12.5%', 'above 99.9%', '100%', 'below 0.1%')
    """
    if share in (0, 1):
        return f"{share:.0%}"
    if share > 0.9995:
        return "above 99.9%"
    if 0 < share < 0.0005:
        return "below 0.1%"
    return f"{share:.1%}"


def _progress(run: Run, facts: Facts) -> Finding:
    planned = run.config.get("steps")
    known = isinstance(planned, int) and not isinstance(planned, bool)
    of = f" of {planned:,} planned" if known and planned != facts.steps else ""
    text = f"The record holds {facts.steps:,}{of} steps"
    status = run.summary.get("status")
    if status == "stalled":
        return Finding("Progress", f"{text}. The run was ended because it had stalled.", True)
    if status == "all updates made":
        return Finding("Progress", f"{text}. The run ended when it had made its updates.")
    if run.summary:
        return Finding("Progress", f"{text}, and the run has ended.")
    note = "There is no summary: the run is still going, or was cut short."
    return Finding("Progress", f"{text}. {note}", warning=True)


def _agreement(facts: Facts, unit: str) -> Finding:
    trend, of = facts.distance, f"the gradients of two {unit}"
    if trend is None or (facts.distance_to_sum is not None and trend.count < 2):
        trend, of = facts.distance_to_sum, "a gradient and the sum of those accepted before it"
    if trend is None:
        return Finding("Agreement", "No cosine distance was recorded.", warning=True)
    if trend.count == 1:
        text = f"At the one step where it is known, the mean cosine distance between {of}"
        return Finding("Agreement", f"{text} was {trend.last:.3f}.")
    text = (
        f"The mean cosine distance between {of} was {_ends(trend, '.3f')}. "
        f"By the end they {_in_words(trend.last)}."
    )
    change = trend.last - trend.first
    if abs(change) < _NOTICEABLE_DISTANCE:
        return Finding("Agreement", f"{text} It hardly changed between the start and the end.")
    return Finding("Agreement", f"{text} Agreement {'fell' if change > 0 else 'rose'}.")


def _in_words(distance: float) -> str:
    return next(words for below, words in _WORDS if distance < below)


def _acceptance(facts: Facts, unit: str, observed: bool) -> Finding:
    if observed and not math.isnan(facts.accepted):
        return Finding(
            "Acceptance",
            f"The loop was only watched: the rule would have accepted {percent(facts.accepted)} of "
            f"the {unit}.",
        )
    if math.isnan(facts.accepted):
        share = "How many gradients the rule accepted was not recorded."
    elif facts.accepted == 1:
        share = f"Every one of the {unit} was accepted, as plain averaging does."
    elif facts.accepted == 0:
        share = f"Not one of the {unit} was accepted."
    else:
        share = f"The rule accepted {percent(facts.accepted)} of the {unit}."
    if facts.updates is None:
        return Finding("Acceptance", share)
    made = f"{facts.updates:,} updates in {facts.steps:,} steps"
    text = f"{share} It made {made} ({percent(facts.updates / facts.steps)})."
    if not facts.updates:
        return Finding("Acceptance", f"{text} The model never changed.", warning=True)
    if facts.idle >= max(_LONG_IDLE, facts.steps // 10):
        text += f" The last {facts.idle:,} steps made none: the run has stalled at its end."
        return Finding("Acceptance", text, warning=True)
    return Finding("Acceptance", text)


def _learning(facts: Facts) -> Finding:
    if facts.loss is None:
        return Finding("Learning", "No finite training loss was recorded.", warning=True)
    text = f"The training loss was {_ends(facts.loss, '.4g')}."
    if facts.train_accuracy is not None and facts.train_accuracy.count > 1:
        trend = facts.train_accuracy
        text += (
            f" Training accuracy went from {percent(trend.first)} to {percent(trend.last)} "
            f"({_span(trend)})."
        )
    rose = facts.loss.last > facts.loss.first
    return Finding("Learning", f"{text} The loss grew." if rose else text, warning=rose)


def _generalisation(facts: Facts) -> Finding:
    topic = "New data"
    last, train = facts.validation_accuracy, facts.train_accuracy
    if math.isnan(last):
        text = "No validation accuracy was recorded, so memorising cannot be told from learning."
        return Finding(topic, text)
    text = f"Validation accuracy at step {facts.validation_step:,} was {percent(last)}."
    lost = facts.best_validation_accuracy - last
    if lost >= _NOTICEABLE_SHARE:
        text += (
            f" It had been {percent(facts.best_validation_accuracy)} at step "
            f"{facts.best_validation_step:,}: {_points(lost)} were lost since."
        )
    if train is None:
        return Finding(topic, text, warning=lost >= _NOTICEABLE_SHARE)
    gap = train.last - last
    if gap >= _GAP:
        text += (
            f" Training accuracy is {_points(gap)} higher: the model fits its training data "
            "better than data it has not seen, a sign of memorising."
        )
    elif gap >= -_GAP:
        text += " Training accuracy is within 10 points of it: no sign of memorising in that."
    else:
        text += (
            f" Training accuracy is {_points(-gap)} lower, as it is with wrong training labels "
            "that the model does not follow, or with augmentation or dropout."
        )
    return Finding(topic, text, warning=gap >= _GAP or lost >= _NOTICEABLE_SHARE)


def _wrong_labels(noise: Any, facts: Facts) -> Finding | None:
    train = facts.train_accuracy
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 < noise < 1:
        return None
    if train is None:
        return None
    text = (
        f"{percent(noise)} of the training labels were moved to another class. A model that "
        f"follows none of the wrong ones reaches at most about {percent(1 - noise)} on the given "
        f"labels; this one reached {percent(train.last)}"
    )
    if train.last > 1 - noise + _NOTICEABLE_SHARE:
        return Finding("Wrong labels", f"{text}, so it has learned wrong labels.", warning=True)
    return Finding("Wrong labels", f"{text}, which does not show that it learned wrong ones.")


def _finiteness(facts: Facts, unit: str) -> Finding | None:
    if facts.not_finite is None:
        return None
    if not facts.not_finite:
        return Finding("Numbers", "No gradient was NaN or infinite.")
    of = f" of {facts.offered:,}" if facts.offered else ""
    text = (
        f"{facts.not_finite:,}{of} {unit} gave a gradient that was NaN or infinite, first at step "
        f"{facts.first_not_finite:,}. They had no part in any update."
    )
    return Finding("Numbers", text, warning=True)


def _ends(trend: Trend, form: str) -> str:
    if trend.count == 1:
        return format(trend.last, form)
    ends = f"{trend.first:{form}} at the start and {trend.last:{form}} at the end"
    return f"{ends} ({_span(trend)})"


def _span(trend: Trend) -> str:
    ends = "means over the first and last" if trend.span > 1 else "the first and last"
    return f"{ends} {trend.span:,} of {trend.count:,} steps"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
