from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import seaborn as sns
from matplotlib.figure import Figure

from gafscope.errors import UserError
from gafscope.plots import RULE_COLOURS, RULE_LINES, rule_style, save_figure, theme
from gafscope.plots.style import log_axis, new_figure

RULES = ["averaging", "GAF", "HalvingGAF", "yoked control", "random skip", "same updates"]


def drawing() -> Figure:
    with theme():
        figure = new_figure(3, 2)
        axes = figure.subplots()
        axes.plot([0, 1, 2], [3, 1, 2], label="a", rasterized=True)
        axes.fill_between([0, 1, 2], [1, 0, 1], [3, 2, 3], alpha=0.3)
        axes.legend()
    return figure


def test_every_rule_has_its_own_colour_and_a_line() -> None:
    assert list(RULE_COLOURS) == list(RULE_LINES) == RULES
    palette = sns.color_palette("colorblind").as_hex()
    assert set(RULE_COLOURS.values()) <= set(palette)
    assert len(set(RULE_COLOURS.values())) == len(RULES)
    # Averaging and GAF are told apart by their places; each control has its own line.
    controls = [RULE_LINES[rule] for rule in RULES[3:]]
    assert len(set(controls)) == 3
    assert RULE_LINES["GAF"] not in controls


def test_a_rule_looks_the_same_in_any_company() -> None:
    alone = rule_style(["GAF"])["GAF"]
    crowd = rule_style(["soft", "clique", "GAF"])
    assert crowd["GAF"] == alone == {"color": RULE_COLOURS["GAF"], "linestyle": "-"}


def test_sixteen_further_rules_stay_apart() -> None:
    names = [f"tau = {i}" for i in range(16)]
    styles = rule_style([*RULES, *names])
    assert len({tuple(style.values()) for style in styles.values()}) == len(RULES) + 16


def test_the_theme_ends_with_its_block() -> None:
    before = dict(mpl.rcParams)
    with theme():
        assert dict(mpl.rcParams) != before
    assert dict(mpl.rcParams) == before


def test_saving_writes_png_and_svg_and_empties_the_figure(tmp_path: Path) -> None:
    figure = drawing()
    paths = save_figure(figure, tmp_path / "figures", "demo")
    assert [path.name for path in paths] == ["demo.png", "demo.svg"]
    assert sorted(os.listdir(tmp_path / "figures")) == ["demo.png", "demo.svg"]
    header = paths[0].read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20], "big") == 450  # 3 inches of 150 dots
    assert paths[1].read_text().startswith("<?xml")
    assert "dc:date" not in paths[1].read_text()
    assert figure.axes == []


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    first = save_figure(drawing(), tmp_path / "a", "demo")
    second = save_figure(drawing(), tmp_path / "b", "demo")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_full_disk_keeps_the_old_picture(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "demo.png").write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"demo\.png: No space left on device"):
        save_figure(drawing(), tmp_path, "demo")
    assert (tmp_path / "demo.png").read_text() == "old"


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "figures").touch()
    with pytest.raises(UserError, match=r"Cannot write .*figures: File exists"):
        save_figure(drawing(), tmp_path / "figures", "demo")


def test_a_figure_shows_itself_in_jupyter() -> None:
    assert drawing()._repr_png_().startswith(b"\x89PNG")


def test_importing_loads_no_drawing_library() -> None:
    code = """
import sys, gafscope.records, gafscope.plots
slow = {"pandas", "pyarrow", "matplotlib", "seaborn"} & sys.modules.keys()
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.0, 4.0], {"1", "1.5", "2", "3", "4"}),
        ([0.02, 7.0], {"0.02", "0.1", "0.5", "1", "5"}),
        ([1.0, 3e6], {"1", "100", "10000"}),
        ([1e-9, 1e9], set()),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers_that_do_not_overlap(values, shown, which) -> None:
    with theme():
        figure = new_figure(5.5, 4)
        axes = figure.subplots()
        axes.plot(values, values)
        log_axis(axes, which)
    figure.canvas.draw()
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
    seen = [label for place, label in ticks if low <= place <= high]
    assert len(seen) >= 3
    assert shown <= {label.get_text() for label in seen}
    boxes = [label.get_window_extent() for label in seen]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
