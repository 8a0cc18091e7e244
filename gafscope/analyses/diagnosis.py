"""What `diagnose` returns: numbers with intervals, tables, and the answers in words."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import pandas as pd

from gafscope.analyses.answers import answer, records
from gafscope.analyses.ranking import Ranking
from gafscope.calibration import Calibration, Curve
from gafscope.metrics import Estimate, Spectrum


@final
@dataclass(frozen=True, eq=False)
class Diagnosis:
    """One page about the gradients of a model on its data.

    Attributes:
        samples: Samples in the data.
        microbatch_size: u.
        microbatches: k, microbatches of one update.
        estimates: Name -> number: `mean_distance`, `fraction_opposed`, `acceptance` (share of
            pairs within the calibrated tau), `noise_scale` (samples), `least_noise_scale` (a lower
            bound, where the noise scale itself cannot be known), `effective_dimension`,
            `outlier_directions`.
        layers: One row a parameter, the one that disagrees most first: `layer`, `distance`,
            `distance_low`, `distance_high`, and `share` of the squared gradient.
        calibration: The calibrated threshold of microbatches.
        curve: Agreement against the microbatch size, predicted from one size.
        measured: Measured agreement: `u`, `cosine`, `cosine_low`, `cosine_high`, `rows`, and the
            prediction, `predicted`, `predicted_low`, `predicted_high`.
        spectrum: Eigenvalues of the micro-gradients' covariance.
        ranking: Single samples; None where they cannot be had, `notes` say why.
        separation: AUROC of each ranking for flipped labels; None where true labels are not known.
        purity: Flipped samples among what GAF accepts, by `level` (microbatches of u samples with
            the calibrated tau, single samples with theirs); None as `separation`.
        notes: What the reader should know.
    """

    samples: int
    microbatch_size: int
    microbatches: int
    estimates: Mapping[str, Estimate]
    layers: pd.DataFrame
    calibration: Calibration
    curve: Curve
    measured: pd.DataFrame
    spectrum: Spectrum
    ranking: Ranking | None
    separation: pd.DataFrame | None
    purity: pd.DataFrame | None
    notes: tuple[str, ...]

    @property
    def answers(self) -> dict[str, str]:
        """Questions and their answers in plain sentences, in the order of the page."""
        return answer(self)

    @property
    def summary(self) -> pd.DataFrame:
        """Every number in one table: `part, name, quantity, value, low, high, n, note`."""
        lines = [
            {"part": "model", "name": "", "quantity": name, **asdict(found)}
            for name, found in self.estimates.items()
        ]
        lines += _calibration_lines(self.calibration)
        tables = (
            ("layer", "layer", "", self.layers),
            ("curve", "u", "rows", self.measured),
            ("ranking", "score", "samples", self.separation),
            ("purity", "about", "macrobatches", _named_purity(self.purity)),
        )
        for part, name, count, table in tables:
            lines += [] if table is None else _long(part, name, count, table)
        columns = ["part", "name", "quantity", "value", "low", "high", "n", "note"]
        return pd.DataFrame(lines, columns=pd.Index(columns))

    def as_dict(self, top: int = 20) -> dict[str, Any]:
        """Give everything as plain Python values, ready for JSON.

        Args:
            top: How many of the ranked samples to include.

        Returns:
            Nested dicts and lists; what is NaN or infinite is None.
        """
        optional = {
            "separation": self.separation,
            "purity": self.purity,
            "samples_that_disagree_most": self.ranking and self.ranking.table.head(top),
        }
        found = {
            "samples": self.samples,
            "microbatch_size": self.microbatch_size,
            "microbatches": self.microbatches,
            "answers": self.answers,
            "estimates": {name: asdict(found) for name, found in self.estimates.items()},
            "calibration": asdict(self.calibration),
            "layers": records(self.layers),
            "curve": {
                "refused": self.curve.refused,
                "measured": records(self.measured),
                "predicted": records(self.curve.table),
            },
            "spectrum": {
                "eigenvalues": self.spectrum.eigenvalues.tolist(),
                "edge": self.spectrum.edge,
                "outliers": self.spectrum.outliers.value,
            },
            "ranked_by": self.ranking and self.ranking.ranked_by,
            **{name: None if t is None else records(t) for name, t in optional.items()},
            "notes": list(self.notes),
        }
        return _plain(found)

    def __repr__(self) -> str:
        lines = [f"{question}\n  {text}" for question, text in self.answers.items()]
        return "\n".join([f"Diagnosis of {self.samples} samples", *lines, *self.notes])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(question)}</th><td>{html.escape(text)}</td></tr>"
            for question, text in self.answers.items()
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<table><caption>Diagnosis</caption>{rows}</table><ul>{notes}</ul>"


def _calibration_lines(found: Calibration) -> list[dict[str, Any]]:
    first = {"part": "calibration", "name": "", "n": found.rows}
    ways = {"analytic": found.analytic, "permutation": found.permutation}
    return [
        first | {"quantity": "tau", "value": found.tau, "low": found.low, "high": found.high},
        *(first | {"quantity": f"tau, {way}", "value": tau} for way, tau in ways.items()),
        first | {"quantity": "tau, acceptance", "value": found.acceptance},
    ]


def _named_purity(table: pd.DataFrame | None) -> pd.DataFrame | None:
    if table is None:
        return None
    about = table["level"] + ", first " + table["first"]
    return table.drop(columns=["level", "first"]).assign(about=about)


def _long(part: str, name: str, count: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn `x`, `x_low`, `x_high` of each row into one line an x; `count` becomes n."""
    others = [c for c in map(str, table.columns) if c not in (name, count)]
    quantities = [c for c in others if not c.endswith(("_low", "_high"))]
    return [
        {
            "part": part,
            "name": row[name],
            "quantity": quantity,
            "value": row[quantity],
            "low": row.get(f"{quantity}_low", math.nan),
            "high": row.get(f"{quantity}_high", math.nan),
            "n": row.get(count),
        }
        for row in records(table)
        for quantity in quantities
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "item"):  # a number of NumPy's
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
