"""The tables of the study of metrics, and what they say in words.

`found` is always one row a rule, seed, stage and name: columns `data`, `rule`, `seed`, `step`,
`kind`, `name`, `value`, `low`, `high`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gafscope.sweep.intervals import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd

_ALIKE = 0.95
_LEAST = 6
"""Fewest stages that a rank correlation is computed from."""
_LOSS = "loss"


def stage_table(found: pd.DataFrame) -> pd.DataFrame:
    """Average over the seeds, stage by stage.

    Args:
        found: What was measured.

    Returns:
        One row a rule, stage and name: `data`, `rule`, `step`, `kind`, `name`, `seeds` (those with
        a value), `value` with the 95% interval over seeds, `value_low` and `value_high`.
    """
    import pandas as pd

    keys = ["data", "rule", "step", "kind", "name"]
    rows = []
    for key, group in found.groupby(keys, sort=False):
        values = group["value"][np.isfinite(group["value"])].tolist()
        row = dict(zip(keys, key, strict=True)) | {"seeds": len(values)}
        rows.append(row | _columns("value", _over(values)))
    return pd.DataFrame(rows)


def correlations(metrics: pd.DataFrame) -> pd.DataFrame:
    """Give Spearman's rank correlation of each two metrics over rules, seeds and stages.

    Stages of one run are no independent draws, so these describe and carry no interval.

    Args:
        metrics: What was measured, metrics only.

    Returns:
        One row an ordered pair: `name`, `other`, `value`; NaN where fewer than 6 stages have both,
        or one of them never changes.
    """
    import pandas as pd

    wide = metrics.pivot_table(
        index=["rule", "seed", "step"], columns="name", values="value", dropna=False
    )
    wide = wide[list(dict.fromkeys(metrics["name"]))]
    matrix = wide.corr(method="spearman", min_periods=_LEAST)
    return pd.DataFrame(
        [
            {"name": name, "other": other, "value": matrix.loc[name, other]}
            for name in matrix.index
            for other in matrix.columns
        ]
    )


def metric_table(by_stage: pd.DataFrame, related: pd.DataFrame) -> pd.DataFrame:
    """Show each metric untrained, half-way through the stages and at the end.

    Args:
        by_stage: From `stage_table`, metrics only.
        related: From `correlations`.

    Returns:
        One row a rule and metric: `data`, `metric`, `step_<s>` with its interval over seeds for
        three stages, `most_like` and `rank_correlation`, the metric that it ranks most like.
    """
    import pandas as pd

    steps = sorted(by_stage["step"].unique())
    shown = [steps[0], steps[len(steps) // 2], steps[-1]]
    nearest = _nearest(related)
    rows = []
    for (data, rule, name), group in by_stage.groupby(["data", "rule", "name"], sort=False):
        row: dict[str, Any] = {"data": f"{data}, {rule}: metrics", "metric": name}
        for step in shown:
            line = group[group["step"] == step].iloc[0]
            row |= {f"step_{step}{end}": line[f"value{end}"] for end in ("", "_low", "_high")}
        other, rho = nearest.get(str(name), ("-", math.nan))
        rows.append(row | {"most_like": other, "rank_correlation": rho})
    return pd.DataFrame(rows)


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Show each score's AUROC, and its lead over the plain loss at the same stage and seed.

    Args:
        scores: What was measured, scores only.

    Returns:
        One row a rule and score: `data`, `score`, `best_step` (the stage with the largest mean
        over seeds), `auroc_at_best`, `auroc_at_end`, `mean_over_stages`, and `over_loss_at_best`,
        `over_loss_at_end`, `over_loss_mean`, at the best the loss at its own best stage; all with
        intervals over seeds. Empty without scores.
    """
    import pandas as pd

    rows = []
    for (data, rule), part in scores.groupby(["data", "rule"], sort=False):
        wide = part.pivot_table(index="seed", columns=["name", "step"], values="value")
        end = part["step"].max()
        loss: Any = wide[_LOSS]  # (seeds, stages)
        for name in dict.fromkeys(part["name"]):
            own: Any = wide[name]
            best = own.mean().idxmax()
            row = {"data": f"{data}, {rule}: flipped labels", "score": name, "best_step": str(best)}
            row |= _columns("auroc_at_best", _over(own[best].tolist()))
            row |= _columns("auroc_at_end", _over(own[end].tolist()))
            row |= _columns("mean_over_stages", _over(own.mean(axis=1).tolist()))
            if name != _LOSS:
                lead = own - loss
                at_best = own[best] - loss[loss.mean().idxmax()]
                row |= _columns("over_loss_at_best", _over(at_best.tolist()))
                row |= _columns("over_loss_at_end", _over(lead[end].tolist()))
                row |= _columns("over_loss_mean", _over(lead.mean(axis=1).tolist()))
            rows.append(row)
    return pd.DataFrame(rows)


def metrics_verdict(related: pd.DataFrame, metrics: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Say which metrics are alike and which score finds flipped labels.

    Args:
        related: From `correlations`.
        metrics: What was measured, metrics only.
        scores: What was measured, scores only.

    Returns:
        A paragraph for the metrics, and one a rule for the scores.
    """
    table = score_table(scores)
    paragraphs = [_alike(related) + _refused(metrics)]
    if not len(table):
        return f"{paragraphs[0]}\n\nNo label is known to be flipped, so no score was judged."
    for data, part in table.groupby("data", sort=False):
        paragraphs.append(_separation(str(data), part))
    paragraphs.append(
        "A best stage is chosen with the true labels at hand, which a user does not have: the mean "
        "over the stages (logarithmically spaced, so that early steps weigh most) and the end are "
        "the fairer columns."
    )
    return "\n\n".join(paragraphs)


def _separation(data: str, part: pd.DataFrame) -> str:
    rows = {row["score"]: row for row in part.to_dict("records")}
    loss = rows.pop(_LOSS)
    sentences = []
    for where, column, lead in (
        ("each at its own best stage", "auroc_at_best", "over_loss_at_best"),
        ("on average over the stages", "mean_over_stages", "over_loss_mean"),
        ("at the end", "auroc_at_end", "over_loss_at_end"),
    ):
        name = max(rows, key=lambda score, column=column: rows[score][column])
        row = rows[name]
        low, high = row[f"{lead}_low"], row[f"{lead}_high"]
        word = "above" if low > 0 else "below" if high < 0 else "not told apart from"
        sentences.append(
            f"{where}, {name} separates best of the gradients' scores with an AUROC of "
            f"{row[column]:.3f} against {loss[column]:.3f} of the plain loss "
            f"({row[lead]:+.3f} [{low:.3f}, {high:.3f}]: {word} it)"
        )
    return f"{data}: " + "; ".join(sentences) + "."


def _alike(related: pd.DataFrame) -> str:
    pairs = related[related["name"] < related["other"]].dropna(subset=["value"])
    strong = pairs[pairs["value"].abs() >= _ALIKE]
    groups: list[set[str]] = []
    for name, other in zip(strong["name"], strong["other"], strict=True):
        touched = [group for group in groups if name in group or other in group]
        groups = [group for group in groups if group not in touched]
        groups.append({name, other}.union(*touched))
    order = list(dict.fromkeys(related["name"]))
    listed = "; ".join(", ".join(sorted(group, key=order.index)) for group in groups)
    return (
        f"{len(strong)} of {len(pairs)} pairs of metrics order the stages alike, up to the sign "
        f"(Spearman's rank correlation at least {_ALIKE} in size)"
        + (f". Linked by such pairs: {listed}." if groups else ".")
    )


def _refused(metrics: pd.DataFrame) -> str:
    """Name the metrics that could not be had everywhere: means over the rest are biased."""
    known = metrics.assign(known=np.isfinite(metrics["value"])).groupby("name", sort=False)["known"]
    missing = [f"{name} ({sum(part)} of {len(part)})" for name, part in known if not part.all()]
    return f" Not known at every stage and seed: {', '.join(missing)}." if missing else ""


def _nearest(related: pd.DataFrame) -> dict[str, tuple[str, float]]:
    pairs = related[related["name"] != related["other"]].dropna(subset=["value"])
    nearest = {}
    for name, group in pairs.groupby("name"):
        line = group.iloc[int(group["value"].abs().argmax())]
        nearest[str(name)] = (str(line["other"]), float(line["value"]))
    return nearest


def _over(values: list[float]) -> Interval:
    return mean_interval(values) if values else Interval(math.nan, math.nan, math.nan)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
