"""The progress line: what it shows, and when it is silent."""

from __future__ import annotations

import math
import sys

from trainer_parts import macrobatches, network, trainer_of

from gafscope.aggregation import Mean
from gafscope.trainer.progress import Progress


def test_it_counts_on_and_shows_smoothed_numbers_but_no_nan(monkeypatch):
    with Progress(True, start=3, steps=10, name="run") as progress:
        for loss in (1.0, 2.0):
            monkeypatch.setattr(progress, "_next", 0.0)
            progress.update(loss=loss, distance=math.nan)
        bar = progress._bar
        assert (bar.n, bar.total, bar.desc) == (5, 10, "run")
        assert bar.postfix == "loss=1.050"


def test_quick_and_quiet_runs_print_nothing(capsys):
    for shown in (True, False):
        trainer = trainer_of(network(), aggregator=Mean(), progress=shown)
        trainer.fit(macrobatches(3, 2), steps=3)
    assert capsys.readouterr().err.strip() == ""


def test_a_log_file_gets_a_line_now_and_then(monkeypatch):
    for terminal, interval in ((True, 0.5), (False, 30.0)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with Progress(True, start=0, steps=10, name="run") as progress:
            assert progress._bar.mininterval == interval
