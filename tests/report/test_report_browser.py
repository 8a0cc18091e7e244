"""The page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from report_browser import CHROMIUM, Page, browser
from report_runs import CONFIG, record

from gafscope.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

HOSTILE = '</script><script>window.stolen = 1</script><img src=x onerror="window.stolen = 2">'
CELLS = "[...document.querySelectorAll('{} .cells text[fill]')].map((t) => t.textContent).join(' ')"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    config = {**CONFIG, "rule": HOSTILE}
    a = record(folder / "a")
    b = record(folder / "b", config=config, columns={"x" * 80: lambda s: s}, layers=("y" * 90,))
    paths = {"one": folder / "one.html", "several": folder / "several.html"}
    write_report([a], paths["one"])
    write_report([a, b], paths["several"])
    return paths


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_loads_without_a_complaint_and_fits(
    tab: Page, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    tab.complaints.clear()
    tab.open(pages[name], width=width, scheme=scheme)
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("window.stolen === undefined")
    assert tab.complaints == []


def test_what_was_written_into_the_page_by_hand_does_not_run(
    tab: Page, pages: dict[str, Path]
) -> None:
    path = pages["one"].with_name("changed.html")
    text = pages["one"].read_text(encoding="utf-8")
    path.write_text(text.replace("<main", "<script>window.stolen = 3</script><main", 1))
    tab.open(path)
    assert tab.run("window.stolen === undefined")
    assert tab.run(CELLS.format(""))
    tab.complaints.clear()


def test_the_slider_changes_the_matrix(tab: Page, pages: dict[str, Path]) -> None:
    tab.open(pages["one"])
    last = tab.run(CELLS.format(""))
    caption = "document.querySelector('.matrix-caption').textContent"
    assert tab.run(caption).startswith("Step 39:")
    tab.run("document.querySelector('input[type=range]').focus()")
    tab.press("ArrowLeft")
    assert tab.run(caption).startswith("Step 38:")
    before = tab.run(CELLS.format(""))
    assert before != last
    tab.press("Home")
    assert tab.run(caption).startswith("Step 0:")
    assert tab.run("document.querySelector('output').textContent") == "0"
    label = "document.querySelector('.cells').getAttribute('aria-label')"
    assert tab.run(label) == tab.run(caption)
    data = "JSON.parse(document.querySelector('.matrix script').textContent).cells[0]"
    a, b, c, d, e, f = (f"{value / 1000:.2f}" for value in tab.run(data))
    assert tab.run(CELLS.format("")) == " ".join([a, b, d, b, c, e, d, e, f])


def test_each_run_has_a_slider_of_its_own(tab: Page, pages: dict[str, Path]) -> None:
    tab.open(pages["several"])
    other = tab.run(CELLS.format("#r1"))
    first = tab.run(CELLS.format("#r0"))
    tab.run("document.querySelector('#r0-step').focus()")
    tab.press("Home")
    assert tab.run(CELLS.format("#r0")) != first
    assert tab.run(CELLS.format("#r1")) == other


def test_everything_can_be_reached_by_keyboard_and_focus_is_seen(
    tab: Page, pages: dict[str, Path]
) -> None:
    tab.open(pages["one"])
    reached = []
    for _ in range(40):
        tab.press("Tab")
        if tab.run("document.activeElement === document.body"):
            break
        reached.append(tab.run("document.activeElement.className || document.activeElement.type"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert tab.run(outline) == "solid", reached
    assert reached[0] == "skip"
    assert "range" in reached
    assert "wide" in reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_in_figures_stands_out_in_both_schemes(
    tab: Page, pages: dict[str, Path], scheme: str
) -> None:
    tab.open(pages["one"], scheme=scheme)
    colours = tab.run(
        "[...document.querySelectorAll('figure text')].map((t) => getComputedStyle(t).fill)"
    )
    ground = tab.run("getComputedStyle(document.querySelector('figure')).backgroundColor")
    assert colours
    for colour in set(colours):
        assert contrast(colour, ground) > 4.5, (colour, ground)


def test_paper_shows_what_the_screen_folds_away(tab: Page, pages: dict[str, Path]) -> None:
    tab.open(pages["several"])
    tab.run("addEventListener('beforeprint', () => { window.open_ = details() })")
    tab.run("window.details = () => [...document.querySelectorAll('details')].map((d) => d.open)")
    assert not all(tab.run("details()"))
    path = pages["several"].with_suffix(".pdf")
    tab.print(path)
    assert path.read_bytes().startswith(b"%PDF")
    assert all(tab.run("open_"))
    assert not any(tab.run("details()"))


def contrast(one: str, other: str) -> float:
    """Give the contrast ratio of WCAG 2 between two colours `rgb(r, g, b)`."""
    lights = sorted(luminance(colour) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
