"""Accuracy under attack of networks trained with and without filtering.

A network that fits less is often more robust, and less accurate on images that nobody attacked. So
attacked accuracy stands beside the clean one, at the end of training and at the best checkpoint by
validation, and GAF beside controls that make as few updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.attacks import FGSM, PGD, Attack, Pixels, accuracy_under
from gafscope.analyses.comparison import interval_columns, points
from gafscope.analyses.conditions import (
    AVERAGING,
    CONTROLS,
    GAF,
    RANDOM_SKIP,
    SAME_UPDATES,
    YOKED,
    Condition,
    measure_conditions,
    plain_averaging,
    plan_conditions,
)
from gafscope.analyses.leads import check_validated
from gafscope.analyses.presets import all_of_cifar, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import data_name
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.trainer import TrainSettings
from gafscope.trainer.checkpoint import load_checkpoint
from gafscope.trainer.job import assemble
from gafscope.trainer.train import using_threads

if TYPE_CHECKING:
    import pandas as pd

END, BEST = "end", "best validation"
CLEAN, FAST, PROJECTED = "clean", "FGSM", "PGD"
_OVER = {
    AVERAGING: "over_averaging",
    YOKED: "over_yoked",
    SAME_UPDATES: "over_same_updates",
    RANDOM_SKIP: "over_random_skip",
}
_KEYS = ["data", "rule", "weights", "attack", "epsilon"]
_OF_RUN = ["data", "rule", "seed", "train_accuracy", "updates", "accepted"]


@final
@dataclass(frozen=True)
class AdversarialSettings:
    """Train by averaging, by GAF and by GAF's three controls; attack validation images.

    The controls average plainly: stepping exactly when GAF stepped, stopped after as many updates,
    or skipping as many at random. Both attacks know the network and change each pixel by at most
    epsilon, a share of the pixel range of the images before normalisation: FGSM in one step, PGD
    in several from a random start.
    """

    epsilons: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    """Largest changes of a pixel, in (0, 1]; 1 is from black to white."""
    attack_steps: int = 20
    """Steps of PGD."""
    images: int = 500
    """Validation images that are attacked, at most."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train."""


def measure(settings: AdversarialSettings) -> Measured:
    """Train, or go on with it, and attack what came out.

    Args:
        settings: The settings.

    Returns:
        One row a run, weights (at the end or at the best validation), attack and epsilon: the
        `accuracy` on the attacked images, of 1, with `train_accuracy`, `updates` and `accepted`.

    Raises:
        UserError: If a size of the attack is out of range.
    """
    root = Path(settings.train.run_dir or "runs/adversarial")
    attacked = partial(_attacked, settings)
    measured = measure_conditions(_conditions(settings), settings.seeds, root, more=attacked)
    names = [name for name in measured.runs if isinstance(name, str) and name.count("|") == 2]
    runs = measured.runs.melt(_OF_RUN, names, "measured", "accuracy")
    runs[["weights", "attack", "epsilon"]] = runs.pop("measured").str.split("|", expand=True)
    runs["epsilon"] = runs["epsilon"].astype(float)
    return Measured(runs, measured.curves, root)


def conclude(settings: AdversarialSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare, attack by attack.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        One row a rule, weights, attack and epsilon: `accuracy` with a 95% interval over the seeds,
        `kept`, its share of the clean accuracy, and differences to averaging and the controls in
        points, paired by seed, with intervals.
    """
    import pandas as pd

    clean: Any = runs[runs["attack"] == CLEAN].set_index(["rule", "seed", "weights"])["accuracy"]
    rows = []
    for key, group in runs.groupby(_KEYS, sort=False):
        row: dict[str, Any] = dict(zip(_KEYS, key, strict=True)) | {"seeds": len(group)}
        own = group.set_index("seed")["accuracy"]
        row |= interval_columns("accuracy", own.tolist())
        row["kept"] = (own / clean[row["rule"], :, row["weights"]]).mean()
        alike = (runs[_KEYS[2:]] == pd.Series(row)[_KEYS[2:]]).all(axis=1)
        for other, name in _OVER.items():
            theirs = runs[alike & (runs["rule"] == other)].set_index("seed")["accuracy"]
            # Controls are GAF's; beside averaging stand all.
            wanted = row["rule"] == GAF or other == AVERAGING != row["rule"]
            differences = 100 * (own - theirs) if wanted else own[:0]
            row |= interval_columns(name, differences.dropna().tolist())
        rows.append(row | group[["train_accuracy", "updates", "accepted"]].mean().to_dict())
    table = pd.DataFrame(rows)
    shown = ("rule", "weights", "attack", "epsilon", "accuracy", "kept", *list(_OVER.values())[:2])
    return Conclusion(table, _verdict(table, runs), shown)


def _conditions(settings: AdversarialSettings) -> list[Condition]:
    check_validated(settings.train)
    for epsilon in settings.epsilons:
        if not 0 < epsilon <= 1:
            raise UserError(
                f"epsilons are shares of the pixel range and must lie in (0, 1], but {epsilon:g} "
                "is among them; clean images are always measured."
            )
    if not settings.epsilons:
        raise UserError("epsilons is empty, so nothing would be attacked; name at least one.")
    for name in ("attack_steps", "images"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1, but is {getattr(settings, name)}.")
    if settings.train.data == "text":
        raise UserError("The attacks change pixels, and text has none; use a data set of images.")
    base = settings.train
    return [
        Condition(data_name(base), AVERAGING, plain_averaging(base)),
        Condition(data_name(base), GAF, replace(base, rule="gaf"), controls=CONTROLS),
    ]


def _attacked(settings: AdversarialSettings, run: Run) -> Mapping[str, float]:
    """Attack a run's weights: "weights|attack|epsilon" -> accuracy."""
    names = {part.name for part in fields(TrainSettings)}
    own: dict[str, Any] = {name: value for name, value in run.config.items() if name in names}
    job = assemble(replace(settings.train, **own | {"yoked_to": None}), None)
    state, model = load_checkpoint(run.folder), job.trainer.model
    assert state is not None  # a run that has ended has a checkpoint
    last, best = state["model"], state["best"]["state"]
    inputs, targets = job.dataset.validation.batch()
    pixels = Pixels.of(inputs)
    inputs, targets = inputs[: settings.images], targets[: settings.images]
    found = {}
    with using_threads(settings.train.threads):
        for weights, values in ((END, last), (BEST, best or last)):
            model.load_state_dict(values)
            for name, epsilon, attack in _attacks(settings, pixels, run.config["seed"]):
                accuracy = accuracy_under(attack, model, inputs, targets)
                found[f"{weights}|{name}|{epsilon}"] = accuracy
    return found


def _attacks(
    settings: AdversarialSettings, pixels: Pixels, seed: int
) -> list[tuple[str, float, Attack | None]]:
    attacks: list[tuple[str, float, Attack | None]] = [(CLEAN, 0.0, None)]
    for epsilon in settings.epsilons:
        attacks.append((FAST, epsilon, FGSM(epsilon, pixels)))
        attacks.append((PROJECTED, epsilon, PGD(epsilon, pixels, settings.attack_steps, seed)))
    return attacks


def _verdict(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    projected = table[table["attack"] == PROJECTED]
    best = projected[(projected["rule"] == AVERAGING) & (projected["weights"] == BEST)]
    # Where the attack is neither harmless nor hopeless.
    epsilon: Any = best.loc[(best["kept"] - 0.5).abs().idxmin(), "epsilon"]
    sentences = [
        f"PGD that changes each pixel by at most {epsilon:g} of its range; accuracies on attacked "
        "(and on clean) validation images, leads in points, paired by seed, with 95% intervals."
    ]
    for weights, words in ((END, "At the end"), (BEST, "At the best checkpoint by validation")):
        part = table[table["weights"] == weights]
        hit = part[(part["attack"] == PROJECTED) & (part["epsilon"] == epsilon)]
        rows = {row["rule"]: row for row in hit.to_dict("records")}
        unhurt = {row["rule"]: row for row in part[part["attack"] == CLEAN].to_dict("records")}
        listed = ", ".join(
            f"{rule} {row['accuracy']:.1%} ({unhurt[rule]['accuracy']:.1%})"
            for rule, row in rows.items()
        )
        leads = " and ".join(
            f"{points(rows[GAF], name)} ({points(unhurt[GAF], name)}) over {other}"
            for name, other in (("over_averaging", AVERAGING), ("over_yoked", f"its {YOKED}"))
        )
        attacked = part[(part["rule"] == GAF) & (part["attack"] == PROJECTED)]
        above, over = (
            int((attacked[f"{name}_low"] > 0).sum()) for name in ("over_averaging", "over_yoked")
        )
        sentences.append(
            f"{words}: {listed}. GAF: {leads}; of {len(attacked)} epsilons it is above averaging "
            f"in {above} and above the {YOKED} in {over}."
        )
    return " ".join([*sentences, _masking(runs)])


def _masking(runs: pd.DataFrame) -> str:
    """Look for signs that the gradient hides how weak a network is (arXiv 1802.00420)."""
    measured = runs[runs["attack"] != CLEAN].pivot_table(
        index=["rule", "weights", "seed", "epsilon"], columns="attack", values="accuracy"
    )
    lead = 100 * (measured[PROJECTED] - measured[FAST])
    epsilon = runs["epsilon"].max()
    left = measured[PROJECTED].xs(epsilon, level="epsilon").max()
    # Single runs differ by an image or two that the random start happens to miss.
    mean = lead.groupby(level=["rule", "weights", "epsilon"]).mean().max()
    masked = mean > 1 or left > 0.01
    return (
        f"PGD leaves more right than FGSM in {int((lead > 0).sum())} of {len(lead)} measurements, "
        f"at most {lead.max():+.1f} points in one and {mean:+.1f} in the mean over seeds, and at "
        f"epsilon {epsilon:g} at most {left:.1%}: "
        f"{'gradients may be masked' if masked else 'no sign of masked gradients'}."
    )


ADVERSARIAL = Analysis(
    name="adversarial",
    question="Do networks trained with GAF resist adversarial examples better?",
    presets={
        "quick": AdversarialSettings(train=noisy_digits(validation=0.2)),
        "cifar": AdversarialSettings(
            epsilons=(1 / 255, 2 / 255, 4 / 255, 8 / 255, 0.5), seeds=2, train=cifar_part()
        ),
        "gpu": AdversarialSettings(
            epsilons=(1 / 255, 2 / 255, 4 / 255, 8 / 255, 0.5), images=5000, train=all_of_cifar()
        ),
    },
    minutes={
        "quick": "2 minutes on 2 cores",
        "cifar": "2 hours on 2 cores",
        "gpu": "1 hour on one large GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
