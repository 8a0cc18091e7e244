"""A figure as SVG inside a page: it takes the page's text colour and reads out its label."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from gafscope.plots.style import BLUE, BROWN, GREEN, GREY, ORANGE, PINK, RED, SKY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"url\(#")
_FONT = re.compile(r"font-family: [^;]*(; )?")
_DROPPED = {"metadata", "style"}
# The theme's inks become the page's; a colour that means something may be lightened by it.
_INKS = {
    "#262626": "currentColor",
    "#000000": "currentColor",
    "#808080": "var(--soft)",
    "#ebebeb": "var(--grid)",
    "#999999": "var(--edge)",
}
_NAMED = {
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
    PINK: "pink",
    BROWN: "brown",
    GREY: "grey",
    SKY: "sky",
}


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """Write a figure as an `<svg>` element for an HTML page, and empty it.

    The background is transparent. Text takes the page's `color`; the page sets `--grid`,
    `--edge` and `--soft`, and may replace the figures' colours by `--blue`, `--orange` ...

    Args:
        figure: The figure; it is cleared, which frees its memory.
        name: Makes the element's ids unique in the page; letters, digits and "-".
        label: What a screen reader says in place of the picture.

    Returns:
        The element, every text in it escaped. Equal figures give equal text.
    """
    import matplotlib as mpl

    text = io.StringIO()
    # As text, letters are small, can be searched, and use the reader's font.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", dpi=_DPI, transparent=True, metadata={"Date": None})
    figure.clear()
    root = ElementTree.fromstring(text.getvalue())
    _take_out(root)
    for element in root.iter():
        _fit_into_page(element, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def page_colour(colour: str) -> str:
    """Name a figure's colour the way a page's style sheet may replace it.

    Args:
        colour: Hex, as in `style`.

    Returns:
        A CSS colour: `currentColor`, a variable of the page, or the colour itself.
    """
    if colour in _INKS:
        return _INKS[colour]
    return f"var(--{_NAMED[colour]}, {colour})" if colour in _NAMED else colour


def _take_out(element: ElementTree.Element) -> None:
    """Remove what is not drawn; a style sheet in an SVG would act on the whole page."""
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _take_out(child)


def _fit_into_page(element: ElementTree.Element, name: str) -> None:
    # Inside HTML neither tags nor attributes carry a namespace.
    element.tag = _local(element.tag)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    for key, value in attributes.items():
        if key == "id":
            attributes[key] = f"{name}-{value}"
        elif key == "href" and value.startswith("#"):
            attributes[key] = f"#{name}-{value[1:]}"
        else:
            attributes[key] = _REFERENCE.sub(f"url(#{name}-", value)
        if key == "style":
            attributes[key] = _HEX.sub(lambda found: page_colour(found[0]), attributes[key])
    if element.tag == "text":
        style = _FONT.sub("", attributes.get("style", ""))
        # matplotlib leaves out black, the default of SVG, which is invisible in the dark.
        attributes["style"] = style if "fill: " in style else f"fill: currentColor; {style}"
    element.attrib.clear()
    element.attrib.update(attributes)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
