"""Every committed figure, table, verdict and number comes from what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from gafscope.analyses import get_analysis
from gafscope.cli.study import conclude, write_conclusion

ROOT = Path(__file__).parents[2] / "analyses"
# A study's folder, and below it one for each further preset that was run.
STUDIES = sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.rglob("measured.json"))
NUMBER = re.compile(r"(?<![\w.^/-])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w^/-])")
# Counting words, seeds and the like.
SMALL = 20

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=STUDIES)
def study(request, tmp_path_factory):
    """A copy of a study's folder, drawn again."""
    name = request.param
    folder = tmp_path_factory.mktemp("study")
    for file in ("runs.csv", "curves.csv", "recipe.yaml", "measured.json"):
        (folder / file).write_bytes((ROOT / name / file).read_bytes())
    analysis = get_analysis(name.split("/")[0])
    result = conclude(analysis, folder)
    return ROOT / name, folder, write_conclusion(analysis, result)


def test_the_table_and_the_verdict_follow_from_the_runs(study):
    kept, again, _ = study
    assert (again / "verdict.txt").read_text() == (kept / "verdict.txt").read_text()
    pd.testing.assert_frame_equal(
        pd.read_csv(again / "summary.csv"), pd.read_csv(kept / "summary.csv"), rtol=1e-9
    )


def test_the_figures_follow_from_the_tables(study):
    from matplotlib.image import imread

    kept, _, written = study
    drawn = [path for path in written if path.suffix == ".png"]
    assert {path.name for path in drawn} == {p.name for p in (kept / "figures").glob("*.png")}
    for path in drawn:
        new, old = imread(path), imread(kept / "figures" / path.name)
        assert new.shape == old.shape, path.name
        # Another version of a drawing library may shade an edge otherwise.
        assert float(np.abs(new - old).mean()) < 0.01, path.name


def test_every_number_of_the_findings_was_measured_or_set(study):
    kept, _, _ = study
    if not (kept / "FINDINGS.md").exists():
        assert (kept.parent / "FINDINGS.md").exists()
        return  # with its parent
    text = (kept / "FINDINGS.md").read_text()
    known = np.concatenate([pool(path.parent) for path in kept.rglob("measured.json")])
    missing = [token for token in numbers(text) if not is_known(token, known)]
    assert not missing, f"{kept.name}: {missing}"


def test_the_ledger_names_every_study():
    ledger = (ROOT / "README.md").read_text()
    for path in ROOT.glob("*/FINDINGS.md"):
        assert f"({path.parent.name}/FINDINGS.md)" in ledger


def test_a_number_from_nowhere_is_found():
    known = np.array([0.8234, 41.0])
    assert is_known("82.3", known)
    assert is_known("0.823", known)
    assert is_known("41", known)
    assert is_known("7", known)
    assert not is_known("82.4", known)
    assert not is_known("57", known)
    assert numbers("Fig. 5, 1,024 pixels at `1e-3` in 64-128-10, arXiv 2412.18052") == [
        "5",
        "1,024",
    ]


def numbers(text: str) -> list[str]:
    """Give the numbers of a text, but those of code, links and references."""
    for noise in (r"`[^`]*`", r"\]\([^)]*\)", r"arXiv \S+", r"seeds? \d+ to \d+"):
        text = re.sub(noise, " ", text)
    return NUMBER.findall(text)


def pool(folder: Path) -> np.ndarray:
    """Collect every number of a study: measured, concluded or set."""
    values: list[float] = []
    for name in ("summary.csv", "runs.csv"):
        table = pd.read_csv(folder / name)
        values += table.select_dtypes("number").to_numpy(dtype=float).ravel().tolist()
        # Names of conditions and of columns hold settings.
        cells = table.select_dtypes(exclude="number").to_numpy().flat
        texts = " ".join(dict.fromkeys(map(str, [*table.columns, *cells])))
        values += [float(number) for number in re.findall(r"\d+\.?\d*", texts)]
    words = (folder / "verdict.txt").read_text() + str(
        yaml.safe_load((folder / "recipe.yaml").read_text())
    )
    values += [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", words)]
    found = np.unique(np.abs(np.asarray(values)))
    return found[np.isfinite(found)]


def is_known(token: str, known: np.ndarray) -> bool:
    """Tell whether a number is one of these, rounded, as it is or as a percentage."""
    plain = token.replace(",", "").lstrip("+-")
    value, digits = float(plain), len(plain.partition(".")[2])
    if not digits and value <= SMALL:
        return True
    scales = np.array([1, 100])[:, None] * known
    return bool((np.abs(scales - value) <= 0.5001 * 10.0**-digits).any())
