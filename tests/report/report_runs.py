"""Small records to report on, and a reader of the pages made of them."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from gafscope.records import Run, RunWriter, load_run

CONFIG = {"model": "mlp", "rule": "gaf", "tau": 0.97, "microbatches": 3, "steps": 40}
VOID = {"meta", "link", "input", "img", "br", "hr"}


def rows_at(step: int) -> np.ndarray:
    """Give three micro-gradients of two numbers."""
    return np.random.default_rng(step).standard_normal((3, 2))


def record(
    folder: Path,
    *,
    steps: int = 40,
    config: Mapping[str, Any] = CONFIG,
    columns: Mapping[str, Any] | None = None,
    layers: tuple[str, ...] = ("first", "last"),
    matrices_every: int = 1,
    summary: Mapping[str, Any] | None = None,
    seed: int = 1,
) -> Run:
    """Write a run; `columns` are constants or functions of the step, None leaves one out."""
    usual: dict[str, Any] = {
        "loss": lambda step: 2 / (step + 1),
        "accuracy": lambda step: (step + 1) / steps,
        "accepted": lambda step: 2 * (step % 2),
        "stepped": lambda step: step % 2 == 1,
        "distance_mean": 0.8,
        "distance_to_sum": [float("nan"), 0.5, 1.0],
        "not_finite": [],
        "validation_accuracy": lambda step: 0.5 if step % 10 == 9 else None,
    }
    writer = RunWriter(folder, config, seed=seed, device="cpu")
    for step in range(steps):
        row: dict[str, Any] = {"step": step}
        for name, value in {**usual, **(columns or {})}.items():
            value = value(step) if callable(value) else value
            if value is not None:
                row[name] = value
        writer.scalars(row)
        if matrices_every and step % matrices_every == 0:
            gradients = rows_at(step)
            gramian = gradients @ gradients.T
            writer.gramians(step, gramian, dict.fromkeys(layers, gramian))
    if summary is not None:
        writer.summary(summary)
    writer.close()
    return load_run(folder)


class PageReader(HTMLParser):
    """Collects what a page holds, and checks that its elements close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, name: str) -> list[str]:
        return [value for _, other, value in self.attributes if other == name]
