"""The page as text: complete, escaped, of bounded size."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import CONFIG, PageReader, record

from gafscope.errors import UserError
from gafscope.records import Run, load_run
from gafscope.report import write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}$x^{$"


def page(*runs: Run) -> str:
    path = runs[0].folder.parent / "page.html"
    write_report(runs, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    columns = {"grad_norm": lambda step: step, "lr": 0.25}
    return page(record(tmp_path_factory.mktemp("alone") / "demo", columns=columns))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pair")
    mean = {"config": {**CONFIG, "rule": "mean"}, "columns": {"stepped": True}}
    return page(record(folder / "gaf"), record(folder / "mean", **mean))


def test_one_run(alone: str) -> None:
    reader = PageReader(alone)
    assert "Run demo" in reader.text
    for title in ("Verdict", "Curves", "Layers", "Tables", "Settings and provenance"):
        assert title in reader.text
    for caption in ("Loss", "Accuracy", "Cosine distance", "Acceptance and updates", "grad_norm"):
        assert caption in reader.text
    assert "Unchanged throughout: lr = 0.25" in reader.text
    assert "Every recorded step (40)" in reader.text
    assert "model mlp; rule gaf; tau 0.97; microbatches 3; seed 1" in reader.text


def test_a_comparison_shows_what_differs(pair: str) -> None:
    reader = PageReader(pair)
    assert "Comparison of 2 runs" in reader.text
    assert "The runs differ in rule (gaf, mean)." in reader.text
    assert "Settings in which the runs differ" in reader.text
    assert "Updates made: gaf 20, mean 40." in reader.text
    assert reader.values("type").count("range") == 2


def test_nothing_is_loaded_from_outside(pair: str) -> None:
    # The name of the SVG namespace is no address to load from.
    assert set(re.findall(r"https?://[^\"]*", pair)) == {"http://www.w3.org/2000/svg"}
    reader = PageReader(pair)
    links = reader.values("src") + reader.values("href")
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", pair))


def test_ids_are_unique_and_references_lead_somewhere(pair: str) -> None:
    reader = PageReader(pair)
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in reader.values("href") if link.startswith("#")} <= set(ids)
    for name in ("for", "aria-labelledby", "aria-describedby"):
        assert reader.values(name)
        assert set(reader.values(name)) <= set(ids)
    clips = set(re.findall(r"url\(#([^)]*)\)", pair))
    assert clips
    assert clips <= set(ids)


def test_figures_and_tables_have_names(pair: str) -> None:
    reader = PageReader(pair)
    pictures = [value for tag, name, value in reader.attributes if (tag, name) == ("svg", "role")]
    labels = [v for tag, name, v in reader.attributes if (tag, name) == ("svg", "aria-label")]
    assert set(pictures) == {"img"}
    # The two matrices get theirs from the script that draws them.
    assert len(labels) == len(pictures) - 2
    assert all(labels)
    assert reader.tags.count("caption") == reader.tags.count("table")
    assert {"main", "nav", "header", "footer", "h1"} <= set(reader.tags)
    assert ("html", "lang", "en") in reader.attributes


@pytest.mark.parametrize("several", [False, True])
def test_strangers_cannot_inject(tmp_path: Path, several: bool) -> None:
    config = {"rule": HOSTILE, HOSTILE: [HOSTILE], "model": {HOSTILE: HOSTILE}, "tau": HOSTILE}
    columns = {HOSTILE: lambda step: step, "note": HOSTILE, "<b>": 3}
    folder = tmp_path / "run <script>alert(3)< x>"
    run = record(folder, config=config, columns=columns, layers=(HOSTILE, "<i>"))
    text = page(run, record(tmp_path / "plain", matrices_every=0)) if several else page(run)
    reader = PageReader(text)
    # The colours, the matrices of the run, and what draws them.
    assert reader.tags.count("script") == 3
    assert not {"img", "b", "i"} & set(reader.tags)
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert HOSTILE[:60] in reader.text
    assert "{{7*7}}$x^{$" in reader.text


def test_a_provenance_of_strange_values_is_shown_as_text(tmp_path: Path) -> None:
    run = record(tmp_path / "a")
    (run.folder / "provenance.json").write_text(
        '{"seed": "<u>1</u>", "git": {"commit": ["<u>"], "x": {"y": 1}}, "long": "'
        + "z" * 5000
        + '"}'
    )
    reader = PageReader(page(load_run(run.folder)))
    assert "u" not in reader.tags
    assert "<u>1</u>" in reader.text
    assert "z" * 399 + "…" in reader.text
    assert "z" * 400 not in reader.text


def test_missing_matrices_are_said(tmp_path: Path) -> None:
    reader = PageReader(page(record(tmp_path / "a", matrices_every=0)))
    assert "No matrices were recorded" in reader.text
    assert "No matrices by layer were recorded" in reader.text
    assert "input" not in reader.tags


def test_missing_layers_are_said(tmp_path: Path) -> None:
    reader = PageReader(page(record(tmp_path / "a", layers=())))
    assert "No matrices by layer were recorded" in reader.text
    assert "input" in reader.tags


def test_long_runs_are_thinned_and_it_is_said(tmp_path: Path) -> None:
    noisy = {"loss": lambda step: float(np.random.default_rng(step).random())}
    layers = tuple(f"blocks.{number}.weight" for number in range(50))
    text = page(record(tmp_path / "a", steps=3000, columns=noisy, layers=(), matrices_every=1))
    assert "100 of the 3,000 recorded steps, evenly spread." in PageReader(text).text
    assert "20 of 3,000 steps, evenly spread" in PageReader(text).text
    assert len(text) < 600_000
    reader = PageReader(page(record(tmp_path / "b", steps=90, layers=layers)))
    assert "The 40 of 50 layers that disagree most." in reader.text
    assert "60 of the 90 steps with layers, evenly spread." in reader.text


@pytest.mark.parametrize("columns", [{"loss": "text", "accuracy": "?"}, {"loss": float("inf")}])
def test_records_without_sense_still_make_a_page(tmp_path: Path, columns: dict) -> None:
    reader = PageReader(page(record(tmp_path / "a", steps=3, columns=columns)))
    assert "No finite training loss was recorded." in reader.text


def test_a_record_of_matrices_alone(tmp_path: Path) -> None:
    names = ("loss", "accuracy", "accepted", "stepped", "distance_mean", "distance_to_sum")
    empty = dict.fromkeys([*names, "not_finite", "validation_accuracy"])
    reader = PageReader(page(record(tmp_path / "a", steps=2, columns=empty, config={})))
    assert "No cosine distance was recorded." in reader.text
    assert "Every recorded step (2)" in reader.text
    assert "Faint points" not in reader.text


def test_equal_runs_give_equal_pages_and_nothing_beside_them(tmp_path: Path) -> None:
    run = record(tmp_path / "a", steps=3)
    assert page(run) == page(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "page.html"]


def test_runs_that_cannot_be_reported(tmp_path: Path) -> None:
    run, empty = record(tmp_path / "a"), record(tmp_path / "empty", steps=0)
    target = tmp_path / "page.html"
    with pytest.raises(UserError, match=r"empty has no steps yet"):
        write_report([empty], target)
    with pytest.raises(UserError, match=r"a is given twice"):
        write_report([run, run], target)
    with pytest.raises(UserError, match=r"shows 1 to 12 runs, found 13"):
        write_report([run] * 13, target)
    part = next((run.folder / "matrices").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"matrices of the run in .* cannot be read"):
        write_report([run], target)
    assert not target.exists()
