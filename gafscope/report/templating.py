"""The templates of the pages."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def source(name: str) -> Any:
    """Give a file of the templates that goes into a page as it is.

    Args:
        name: Its name, such as "style.css".
    """
    from markupsafe import Markup

    text = files("gafscope.report").joinpath("templates", name).read_text(encoding="utf-8")
    return Markup(text)


@cache
def environment() -> Environment:
    """Make the environment that templates are filled in; what is filled in is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("gafscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
