"""What `predict_curve` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from gafscope.calibration.table import html_table
from gafscope.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True)
class Bounded:
    """A number with its 95% interval; all NaN where it is refused.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """Expected agreement of two microbatches against their size.

    Attributes:
        table: One row a size: `u`, `cosine`, `low`, `high`; NaN where it cannot be known.
        noise_scale: The critical batch size B_simple = tr(Sigma) / |mu|^2, in samples.
        ratio: B of fresh samples, which the curve 1 / (1 + B / u) is drawn with.
        microbatch_size: The size that was measured.
        population: Samples that microbatches are drawn from without replacement; None: no limit.
        classes: Classes that each microbatch holds equal shares of; None: drawn at random.
        refused: Why nothing can be predicted; empty where it can.
        wanted: The agreement that was asked for; None if none was.
        notes: What the curve holds for.
    """

    table: pd.DataFrame
    noise_scale: Bounded
    ratio: Bounded
    microbatch_size: int
    population: int | None
    classes: int | None
    refused: str
    wanted: float | None
    notes: tuple[str, ...]

    def size_for(self, agreement: float) -> Bounded:
        """Give the microbatch size with this expected cosine c, `u = B c / (1 - c)`.

        Args:
            agreement: The cosine, in (0, 1).

        Returns:
            The size in samples, rounded up to one that can be drawn; infinite where two such
            microbatches do not fit into the population, NaN where prediction is refused.

        Raises:
            UserError: If the agreement is out of range.
        """
        if not 0 < agreement < 1:
            raise UserError(
                "The wanted agreement is a mean cosine and must lie in (0, 1), but it is "
                f"{agreement}; 0.5 is usual."
            )
        factor = agreement / (1 - agreement)
        sizes = (self.ratio.value, self.ratio.low, self.ratio.high)
        return Bounded(*(self._drawable(factor * ratio) for ratio in sizes))

    def _drawable(self, size: float) -> float:
        if math.isnan(size):
            return size
        step = self.classes or 1
        size = math.ceil(size / step) * step
        limit = math.inf if self.population is None else self.population / 2
        return math.inf if size > limit else size

    def __repr__(self) -> str:
        if self.refused:
            return f"Curve(refused: {self.refused})"
        text = f"Curve(critical batch size {self.noise_scale})\n{self.table.to_string(index=False)}"
        if self.wanted is not None:
            text += f"\nsize for a cosine of {self.wanted:g}: {self.size_for(self.wanted)}"
        return "\n".join((text, *self.notes))

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {"critical batch size": self.refused or self.noise_scale}
        rows |= {
            f"cosine at u = {row['u']:.0f}": f"{row['cosine']:.3f} [{row['low']:.3f}, "
            f"{row['high']:.3f}]"
            for row in ([] if self.refused else self.table.to_dict("records"))
        }
        if self.wanted is not None:
            rows[f"size for a cosine of {self.wanted:g}"] = self.size_for(self.wanted)
        rows["notes"] = " ".join(self.notes) or "none"
        return html_table(f"Agreement, measured at u = {self.microbatch_size}", rows)
