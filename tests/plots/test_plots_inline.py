from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from gafscope.plots.inline import inline_svg, page_colour
from gafscope.plots.style import BLUE, new_figure, theme


def drawn(text: str = "loss", colour: str = BLUE) -> object:
    with theme():
        figure = new_figure(3, 2)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=colour, label=text, marker="o")
        axes.plot([0, 1], [1, 0], rasterized=True)
        axes.set(xlabel=text, title=text)
        axes.legend()
    return figure


def svg(name: str = "a", label: str = "Loss", **settings: str) -> ElementTree.Element:
    return ElementTree.fromstring(inline_svg(drawn(**settings), name, label))


def test_it_is_a_picture_with_a_name_that_fits_its_place() -> None:
    root = svg(label='Loss "of" <a>')
    assert (root.tag, root.get("role")) == ("svg", "img")
    assert root.get("aria-label") == 'Loss "of" <a>'
    assert root.get("viewBox")
    assert root.get("width") is None


@pytest.mark.parametrize("text", ["</text><script>alert(1)</script>", "$x^{$", "a -- b & 'c'"])
def test_text_is_text(text: str) -> None:
    root = svg(text=text)
    assert [element.text for element in root.iter("text")].count(text) == 3
    assert not list(root.iter("script"))


def test_it_brings_no_style_sheet_and_no_metadata() -> None:
    tags = {element.tag for element in svg().iter()}
    assert not tags & {"style", "metadata"}
    assert not any("}" in tag or ":" in tag for tag in tags)


def test_ids_carry_the_name_and_references_follow() -> None:
    text = inline_svg(drawn(), "a-b", "Loss")
    ids = re.findall(r' id="([^"]*)"', text)
    assert ids
    assert all(name.startswith("a-b-") for name in ids)
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", text) + re.findall(r'href="#([^"]*)"', text)
    assert used
    assert set(used) <= set(ids)


def test_colours_are_the_pages() -> None:
    text = inline_svg(drawn(), "a", "Loss")
    assert f"stroke: var(--blue, {BLUE})" in text
    assert "var(--grid)" in text
    assert "#262626" not in text
    for element in ElementTree.fromstring(text).iter("text"):
        assert "fill: currentColor" in element.get("style", "")
        assert "font-family" not in element.get("style", "")


def test_colours_without_a_meaning_stay() -> None:
    assert page_colour("#123456") == "#123456"
    assert "stroke: #123456" in inline_svg(drawn(colour="#123456"), "a", "Loss")


def test_equal_figures_give_equal_text() -> None:
    assert inline_svg(drawn(), "a", "Loss") == inline_svg(drawn(), "a", "Loss")
