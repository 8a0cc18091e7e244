"""The answers of a diagnosis in plain English, each with its numbers and intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from gafscope.metrics import Estimate

if TYPE_CHECKING:
    from gafscope.analyses.diagnosis import Diagnosis

_SHOWN_LAYERS = 3
# Mean cosines from which agreement is called so.
_STRENGTHS = ((0.5, "strongly"), (0.1, "clearly"), (-2.0, "a little"))
# How far beyond the cosine of a fitted data set's parts opposition still counts as that.
_FITTED = 1.5
SINGLE = "single samples"
"""The level of purity at which each sample is a row."""
_FIRST_SAMPLE = "the first one was clean", "it was flipped"
_FIRST_MICROBATCH = (
    "the first microbatch held no more flipped samples than the average",
    "it held more",
)
_WORDS = {
    "class_distance": "mean distance to the samples of the same given label",
    "mean_distance": "mean distance to all other samples",
    "distance_to_sum": "distance to the sum of the others",
    "gradient_norm": "gradient norm",
    "loss": "plain loss",
}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Give a table's rows, column -> value."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def answer(found: Diagnosis) -> dict[str, str]:
    """Put a diagnosis into words.

    Args:
        found: The diagnosis.

    Returns:
        Question -> answer; only what could be measured.
    """
    answers = {
        "Do the gradients agree?": _agreement(found),
        "Which layers disagree?": _layers(found.layers),
        "Is the batch too small or too large?": _batch(found),
        "Which threshold?": _threshold(found),
        "How does agreement grow with the microbatch size?": _curve(found),
    }
    if found.ranking is not None:
        answers["Which samples disagree most?"] = _samples(found)
    if found.separation is not None:
        answers["Does the ranking find flipped labels?"] = _separation(found.separation)
    if found.purity is not None:
        answers["Does the rule keep flipped samples out?"] = _purity(found)
    return answers


def _agreement(found: Diagnosis) -> str:
    distance, acceptance = found.estimates["mean_distance"], found.estimates["acceptance"]
    asked = found.calibration.false_accept
    floor = acceptance.low if acceptance.has_interval else acceptance.value
    few = "" if floor > asked else ": too few to tell a single pair from independent ones"
    return (
        f"{_verdict(found)} The mean cosine distance of two microbatches of "
        f"{found.microbatch_size} is {_text(distance)} (1 = independent); "
        f"{_percent(found.estimates['fraction_opposed'])} of the pairs pull against each other. "
        f"{_percent(acceptance)} lie within the calibrated tau, which {asked:.0%} of independent "
        f"pairs would{few}."
    )


def _verdict(found: Diagnosis) -> str:
    distance = found.estimates["mean_distance"]
    if distance.high < 1:
        strength = next(word for least, word in _STRENGTHS if 1 - distance.value >= least)
        return f"Yes, {strength}: more than independent gradients would."
    if not distance.low > 1:
        return "No, they cannot be told from independent gradients."
    # Disjoint parts of n samples whose whole gradient is zero have cosines of -u / (n - u).
    fitted = found.microbatch_size / (found.samples - found.microbatch_size)
    if distance.value - 1 <= _FITTED * fitted:
        return (
            "No. They oppose each other as little as disjoint parts of one data set do when the "
            "gradient of the whole is near zero: nothing common is left to learn from these data."
        )
    return "No, they oppose each other."


def _layers(layers: pd.DataFrame) -> str:
    known = layers.dropna(subset=["distance"])
    if known.empty:
        return "No layer has two gradients that can be compared."
    worst = ", ".join(_layer(row) for row in records(known.head(_SHOWN_LAYERS)))
    text = f"Most: {worst}."
    if len(known) > _SHOWN_LAYERS:
        best = records(known.tail(1))[0]
        text += f" Least: {_layer(best)}."
    alike = known[~(known["distance_high"] < 1)]
    return text + (
        f" {len(alike)} of {len(known)} layers cannot be told from independent gradients."
        if len(alike)
        else f" All {len(known)} agree more than independent gradients would."
    )


def _layer(row: dict[str, Any]) -> str:
    found = Estimate(row["distance"], row["distance_low"], row["distance_high"], 0)
    return f"{row['layer']} {_text(found)}"


def _batch(found: Diagnosis) -> str:
    batch = found.microbatch_size * found.microbatches
    noise = found.estimates["noise_scale"]
    size = f"{batch:,} samples an update (k = {found.microbatches}, u = {found.microbatch_size})"
    if math.isnan(noise.value):
        return _unknown_batch(found.estimates["least_noise_scale"].value, batch, size)
    if batch < noise.low:
        verdict = (
            "too small: an update is more noise than signal, and a larger batch (or a smaller "
            "learning rate) pays off"
        )
    elif batch > noise.high:
        verdict = (
            "larger than needed: smaller batches and more updates would learn more a sample, "
            "larger ones only save time in parallel"
        )
    else:
        verdict = "about right: noise and signal are equally strong, as far as can be told"
    return (
        f"The noise scale (critical batch size) is {_count(noise)} samples. {size} are {verdict}."
    )


def _unknown_batch(least: float, batch: int, size: str) -> str:
    """Say what is known of the batch where only a lower bound of the noise scale is."""
    text = (
        "The noise scale cannot be known: the common part of the gradients cannot be told from "
        "zero."
    )
    if math.isinf(least):
        return f"{text} No common part is left at all: {size} are nothing but noise."
    if least > batch:
        return f"{text} It is at least {least:,.0f} samples, so {size} are too small: mostly noise."
    return f"{text} Whether {size} are enough takes more or larger microbatches to tell."


def _threshold(found: Diagnosis) -> str:
    calibration = found.calibration
    shuffled = calibration.permutation
    ways = "shuffled labels are not available here"
    if shuffled is not None:
        inside = calibration.low <= shuffled <= calibration.high
        ways = f"shuffled labels give {shuffled:.3f}, {'inside' if inside else 'outside'} of it"
    target = calibration.acceptance
    wanted = (
        "" if target is None else f"; {calibration.target_acceptance:.0%} are within {target:.3f}"
    )
    return (
        f"tau = {calibration.tau:.3f} [{calibration.low:.3f}, {calibration.high:.3f}] lets "
        f"{calibration.false_accept:.0%} of independent pairs of microbatches of "
        f"{calibration.microbatch_size} through; {ways}. On these gradients it accepts "
        f"{_percent(found.estimates['acceptance'])} of the pairs{wanted}."
    )


def _curve(found: Diagnosis) -> str:
    points = ", ".join(f"{row.cosine:.3f} at u = {row.u}" for row in found.measured.itertuples())
    text = f"Measured mean cosine: {points}."
    if found.curve.refused:
        return f"{text} No prediction: {found.curve.refused}."
    gap = (found.measured["predicted"] - found.measured["cosine"]).abs().max()
    return (
        f"{text} 1 / (1 + B / u) with B from u = {found.microbatch_size} alone is off by at most "
        f"{gap:.3f}."
    )


def _samples(found: Diagnosis) -> str:
    assert found.ranking is not None
    table = found.ranking.table
    first = ", ".join(map(str, table["sample"].head(10)))
    return (
        f"Samples {first} ... by the {_WORDS[found.ranking.ranked_by]} (of {len(table)} ranked); "
        "look at these first when searching for wrong labels."
    )


def _separation(table: pd.DataFrame) -> str:
    rows = {row["score"]: row for row in records(table)}
    ours, other = next(iter(rows.values())), rows["loss"]
    parts = [
        f"{_WORDS[name]} {_text(Estimate(row['auroc'], row['auroc_low'], row['auroc_high'], 0))}"
        for name, row in rows.items()
    ]
    low, high = ours["over_loss_low"], ours["over_loss_high"]
    if low > 0:
        verdict = "better than the plain loss"
    elif high < 0:
        verdict = "worse than the plain loss"
    else:
        verdict = "not to be told from the plain loss"
    difference = Estimate(ours["over_loss"], low, high, 0)
    return (
        f"AUROC (1 finds all first, 0.5 is chance): {'; '.join(parts)}. The ranking is {verdict} "
        f"(difference {_text(difference)}, loss {other['auroc']:.3f})."
    )


def _purity(found: Diagnosis) -> str:
    assert found.purity is not None
    sentences = []
    for level, part in found.purity.groupby("level", sort=False):
        rows = {row["first"]: row for row in records(part)}
        overall = rows["any"]
        first = _FIRST_SAMPLE if level == SINGLE else _FIRST_MICROBATCH
        if math.isnan(overall["flipped_accepted"]):
            sentences.append(f"{str(level).capitalize()}: nothing is accepted.")
            continue
        sentences.append(
            f"{str(level).capitalize()}: {_share(overall, 'flipped_accepted')} of the accepted "
            f"samples are flipped, {_share(overall, 'flipped_rejected')} of the rejected, "
            f"{_share(overall, 'flipped_all')} of all; of the accepted "
            f"{_share(rows['clean'], 'flipped_accepted')} where {first[0]} and "
            f"{_share(rows['corrupted'], 'flipped_accepted')} where {first[1]}."
        )
    return " ".join(sentences)


def _share(row: dict[str, Any], name: str) -> str:
    return _percent(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], 0))


def _text(found: Estimate) -> str:
    """Write `value [low, high]` to three digits."""
    if math.isnan(found.value):
        return "unknown"
    if not found.has_interval:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _percent(found: Estimate) -> str:
    if math.isnan(found.value):
        return "none"
    if not found.has_interval:
        return f"{found.value:.1%}"
    return f"{found.value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _count(found: Estimate) -> str:
    return f"{found.value:,.0f} [{found.low:,.0f}, {found.high:,.0f}]"
