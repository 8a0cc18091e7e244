"""What is said about a run, against records whose story is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_runs import CONFIG, record

from gafscope.report.comparison import compare, comparison_table, run_names
from gafscope.report.facts import gather
from gafscope.report.verdict import Finding, judge


def verdict(tmp_path: Path, **settings: Any) -> dict[str, Finding]:
    run = record(tmp_path / "run", **settings)
    return {finding.topic: finding for finding in judge(run, gather(run))}


def test_distances_at_both_ends_are_means(tmp_path: Path) -> None:
    found = verdict(tmp_path, columns={"distance_mean": lambda step: step / 50})
    text = found["Agreement"].text
    # Tenths of 40 steps: (0 + 1 + 2 + 3) / 4 / 50 and (36 + ... + 39) / 4 / 50.
    assert "0.030 at the start and 0.750 at the end" in text
    assert "means over the first and last 4 of 40 steps" in text
    assert "they agreed in part" in text
    assert text.endswith("Agreement fell.")


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (0.2, "agreed strongly"),
        (0.7, "agreed in part"),
        (1.0, "hardly agreed"),
        (1.3, "pulled against each other"),
    ],
)
def test_words_for_distances(tmp_path: Path, distance: float, words: str) -> None:
    text = verdict(tmp_path, columns={"distance_mean": distance})["Agreement"].text
    assert words in text
    assert "hardly changed" in text


def test_distances_to_the_sum_where_pairs_are_not_known(tmp_path: Path) -> None:
    text = verdict(tmp_path, columns={"distance_mean": None})["Agreement"].text
    assert "a gradient and the sum of those accepted before it was 0.750" in text


def test_acceptance(tmp_path: Path) -> None:
    finding = verdict(tmp_path)["Acceptance"]
    assert finding.text == (
        "The rule accepted 33.3% of the microbatches. It made 20 updates in 40 steps (50.0%)."
    )
    assert not finding.warning
    assert not verdict(tmp_path / "x", columns={"stepped": lambda step: step < 25})[
        "Acceptance"
    ].warning


def test_a_watched_loop_accepted_nothing_itself(tmp_path: Path) -> None:
    finding = verdict(tmp_path, config={**CONFIG, "mode": "observe"})["Acceptance"]
    assert finding.text == (
        "The loop was only watched: the rule would have accepted 33.3% of the microbatches."
    )
    filtered = verdict(tmp_path / "f", config={**CONFIG, "mode": "filter"})["Acceptance"]
    assert filtered.text.startswith("The rule accepted 33.3%")


@pytest.mark.parametrize(
    ("stepped", "words"),
    [(lambda step: step < 15, "The last 25 steps made none"), (False, "The model never changed")],
)
def test_stalled_runs(tmp_path: Path, stepped: Any, words: str) -> None:
    finding = verdict(tmp_path, columns={"stepped": stepped})["Acceptance"]
    assert words in finding.text
    assert finding.warning


def test_samples_are_called_samples(tmp_path: Path) -> None:
    found = verdict(tmp_path, config={**CONFIG, "microbatches": "samples"})
    assert "of the samples" in found["Acceptance"].text


def test_overfitting_is_named_with_its_numbers(tmp_path: Path) -> None:
    columns = {
        "accuracy": 1.0,
        "validation_accuracy": lambda step: 0.9 if step == 10 else 0.6 if step == 39 else None,
    }
    finding = verdict(tmp_path, columns=columns)["New data"]
    assert "Validation accuracy at step 39 was 60.0%." in finding.text
    assert "It had been 90.0% at step 10: 30.0 points were lost since." in finding.text
    assert "40.0 points higher" in finding.text
    assert "a sign of memorising" in finding.text
    assert finding.warning


@pytest.mark.parametrize(("train", "words"), [(0.55, "no sign of memorising"), (0.3, "lower")])
def test_no_overfitting(tmp_path: Path, train: float, words: str) -> None:
    finding = verdict(tmp_path, columns={"accuracy": train})["New data"]
    assert words in finding.text
    assert not finding.warning


def test_without_a_validation_nothing_is_claimed(tmp_path: Path) -> None:
    text = verdict(tmp_path, columns={"validation_accuracy": None})["New data"].text
    assert "cannot be told from learning" in text


@pytest.mark.parametrize(("train", "learned"), [(0.9, True), (0.58, False)])
def test_wrong_labels(tmp_path: Path, train: float, learned: bool) -> None:
    config = {**CONFIG, "label_noise": 0.4}
    finding = verdict(tmp_path, config=config, columns={"accuracy": train})["Wrong labels"]
    assert "40.0% of the training labels were moved" in finding.text
    assert "at most about 60.0%" in finding.text
    assert ("so it has learned wrong labels" in finding.text) == learned
    assert finding.warning == learned


@pytest.mark.parametrize("noise", [0, None, "much", True])
def test_nothing_about_labels_without_noise(tmp_path: Path, noise: Any) -> None:
    assert "Wrong labels" not in verdict(tmp_path, config={**CONFIG, "label_noise": noise})


def test_not_finite_gradients_are_counted(tmp_path: Path) -> None:
    finding = verdict(tmp_path, columns={"not_finite": lambda s: [0, 2] if s in (5, 9) else []})
    text = finding["Numbers"].text
    assert text.startswith("4 of 120 microbatches gave a gradient that was NaN or infinite")
    assert "first at step 5" in text
    assert finding["Numbers"].warning


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (None, "still going, or was cut short"),
        ({"status": "stalled"}, "ended because it had stalled"),
        ({"status": "finished"}, "40 of 90 planned steps, and the run has ended"),
    ],
)
def test_how_it_ended(tmp_path: Path, summary: Any, words: str) -> None:
    found = verdict(tmp_path, summary=summary, config={**CONFIG, "steps": 90})
    assert words in found["Progress"].text


def test_a_run_alone_claims_nothing_about_its_rule(tmp_path: Path) -> None:
    assert "not that its rule is better" in verdict(tmp_path)["What this cannot tell"].text


def comparison(tmp_path: Path, **settings: dict[str, Any]) -> dict[str, Finding]:
    runs = {name: record(tmp_path / name, **own) for name, own in settings.items()}
    facts = {name: gather(run) for name, run in runs.items()}
    return {finding.topic: finding for finding in compare(runs, facts)}


def test_several_settings_that_differ_explain_nothing(tmp_path: Path) -> None:
    other = {"config": {**CONFIG, "rule": "mean", "tau": 2.0}}
    finding = comparison(tmp_path, a={}, b=other)["What differs"]
    assert "rule (gaf, mean); tau (0.97, 2.0)" in finding.text
    assert finding.warning


def test_seeds(tmp_path: Path) -> None:
    seeds = {f"s{seed}": {"config": {**CONFIG, "seed": seed}, "seed": seed} for seed in range(3)}
    found = comparison(tmp_path, **seeds)
    assert found["What differs"].text == "The runs differ only in their seed."
    assert "Every setting was run at least 3 times." in found["What this cannot tell"].text
    assert "within 5%" in found["Updates"].text


def test_outcomes_are_ordered_and_the_order_by_best_is_told(tmp_path: Path) -> None:
    def validation(best: float, last: float) -> dict[str, Any]:
        values = {9: best, 39: last}
        return {"columns": {"validation_accuracy": values.get}}

    found = comparison(tmp_path, a=validation(0.9, 0.5), b=validation(0.6, 0.6))
    text = found["Outcome"].text
    assert "b 60.0%, a 50.0%. Highest and lowest are 10.0 points apart." in text
    assert "another: a 90.0%, b 60.0%" in text


def test_updates_need_a_control(tmp_path: Path) -> None:
    often = {"columns": {"stepped": True}}
    without = comparison(tmp_path / "x", gaf={}, mean=often)["Updates"]
    assert "No control" in without.text
    assert without.warning
    control = {"config": {**CONFIG, "yoked_to": "gaf"}}
    with_one = comparison(tmp_path / "y", gaf={}, mean=often, yoked=control)["Updates"]
    assert "Controls for that among the runs: yoked." in with_one.text
    assert not with_one.warning


def test_the_table_has_a_column_a_run(tmp_path: Path) -> None:
    runs = {
        "a": record(tmp_path / "a", summary={"status": "finished", "test_accuracy": 0.25}),
        "b": record(tmp_path / "b", steps=20, columns={"distance_mean": None}),
    }
    table = comparison_table(runs, {name: gather(run) for name, run in runs.items()})
    assert table.head == ["number", "a", "b"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["steps"] == ["40", "20"]
    assert rows["updates"] == ["20 (50.0%)", "10 (50.0%)"]
    assert rows["distance, end"] == ["0.800", "-"]
    assert rows["test accuracy"] == ["25.0%", "-"]
    assert "best validation at step" not in rows


def test_names_are_as_short_as_tells_them_apart() -> None:
    folders = [Path("x/a"), Path("y/a"), Path("b")]
    assert run_names(folders) == ["x/a", "y/a", "b"]
