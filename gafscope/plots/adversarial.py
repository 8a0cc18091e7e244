"""Figures of the attack study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.plots.style import new_figure, rule_style, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WEIGHTS = (("end", "at the end", "o"), ("best validation", "at the best validation", "D"))


def plot_adversarial(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw accuracy under PGD by epsilon, and beside the clean accuracy.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    with theme():
        figure = new_figure(14, 4.8)
        *by_size, beside = figure.subplots(1, 3)
        for axes, (weights, title, _) in zip(by_size, _WEIGHTS, strict=True):
            _by_epsilon(axes, table[table["weights"] == weights])
            axes.set_title(title)
        by_size[1].sharey(by_size[0])
        _beside_clean(beside, table)
        figure.legend(*by_size[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return {"adversarial": figure}


def _by_epsilon(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the mean over seeds of each rule, averaging's and GAF's with their intervals."""
    sizes = sorted(table["epsilon"].unique())
    for rule, style in rule_style(dict.fromkeys(table["rule"])).items():
        part = table[(table["rule"] == rule) & table["attack"].isin(["clean", "PGD"])]
        part = part.sort_values("epsilon")
        x = [sizes.index(size) for size in part["epsilon"]]
        axes.plot(x, 100 * part["accuracy"], label=rule, marker="o", ms=4, **style)
        if rule in ("averaging", "GAF"):
            low, high = (100 * part[f"accuracy_{end}"] for end in ("low", "high"))
            axes.fill_between(
                x, low.clip(0), high.clip(upper=100), color=style["color"], alpha=0.15, linewidth=0
            )
    axes.set_xticks(range(len(sizes)), [f"{size:.2g}" if size else "clean" for size in sizes])
    axes.set(
        xlabel="epsilon of PGD (share of the pixel range)",
        ylabel="validation accuracy (%)",
        ylim=(-3, 103),
    )


def _beside_clean(axes: Axes, table: pd.DataFrame) -> None:
    """Draw each rule's mean accuracy under one attack over its mean accuracy without."""
    best = table[(table["weights"] == "best validation") & (table["rule"] == "averaging")]
    hit = best[best["attack"] == "PGD"]
    epsilon = hit.loc[(hit["kept"] - 0.5).abs().idxmin(), "epsilon"]
    styles = rule_style(dict.fromkeys(table["rule"]))
    for weights, label, marker in _WEIGHTS:
        part = table[table["weights"] == weights].set_index("rule")
        for rule, style in styles.items():
            own = part.loc[[rule]]
            clean = own[own["attack"] == "clean"]
            attacked = own[(own["attack"] == "PGD") & (own["epsilon"] == epsilon)]
            axes.errorbar(
                100 * clean["accuracy"],
                100 * attacked["accuracy"],
                xerr=_arms(clean),
                yerr=_arms(attacked),
                color=style["color"],
                marker=marker,
                ms=6,
                elinewidth=0.8,
                linestyle="none",
            )
        axes.plot([], [], marker, color="0.3", label=label)
    axes.set(
        xlabel="clean validation accuracy (%)",
        ylabel=f"under PGD of epsilon {epsilon:.2g} (%)",
    )
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _arms(part: pd.DataFrame) -> list[list[float]] | None:
    """Give the lengths of an interval's arms in percent; None without an interval."""
    if "accuracy_low" not in part or part["accuracy_low"].isna().any():
        return None
    mean, low, high = (100 * part[f"accuracy{end}"] for end in ("", "_low", "_high"))
    return [(mean - low).tolist(), (high - mean).tolist()]
