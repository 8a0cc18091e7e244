"""Share of pairs that pull against each other."""

from __future__ import annotations

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.signs import estimate_of_signs
from gafscope.metrics.source import Source, finite_gramian


def fraction_opposed(source: Source, *, layer: str | None = None) -> Estimate:
    """Give the share of pairs of rows with `<g_i, g_j> < 0`, i.e. at a cosine distance above 1.

    These are the conflicting gradients of PCGrad (arXiv 2001.06782, definition 1). The interval
    is the delete-one jackknife's; it covers 95-98% at n = 32 and is withheld where fewer than
    n / 2 pairs are opposed, or fewer than n / 2 are not: then too few of a kind were seen.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number in [0, 1]; unrelated gradients give 0.5, zero rows oppose nothing.

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "fraction_opposed", 2)
    return estimate_of_signs((matrix < 0).double(), matrix, note, bounds=(0.0, 1.0))
