"""Ranks decide as one process does: the same sets, the same weights to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_processes import run_ranks
from rank_runs import CASES, equal, fit_cases, fit_in_folder, fitted, make

from gafscope.records import load_run

STEPS = 200


def check(ranks: int, names: tuple[str, ...], k: int = 4, steps: int = STEPS) -> None:
    found = run_ranks(fit_cases, ranks, names, steps, k)
    for name in names:
        first, alone = found[0][name], fit_cases(0, (name,), steps, k)[name]
        for other in found[1:]:
            # To the last bit, seconds apart: history, weights, momenta, best weights.
            assert equal(other[name], first), name
        assert first["accepted"] == alone["accepted"], name
        share = np.mean(first["accepted"])
        assert share > 0.02 and (share < 0.98 or name in ("mean", "soft", "sign")), (name, share)
        # A mean over many rows is added up in an order that depends on how long the shards are.
        rounded = name == "sign" and k > 4
        for key, value in alone["model"].items():
            if "running" in key or rounded:
                torch.testing.assert_close(first["model"][key], value, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(first["model"][key], value), (name, key)
        exact = ("accuracy", "stepped", "not_finite", "lr", *(() if rounded else ("loss",)))
        for column in exact:
            assert equal(first["history"][column], alone["history"][column]), (name, column)
        for column in (
            "loss",
            "grad_norm",
            "distance_to_sum",
            "validation_loss",
            "validation_accuracy",
        ):
            ours, theirs = (np.array(o["history"][column], float) for o in (first, alone))
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6, err_msg=column)


def test_two_ranks_with_two_microbatches_each():
    check(2, ("gaf", "best anchor", "soft", "calibrated"))


def test_four_ranks_with_one_microbatch_each():
    check(4, ("gaf", "calibrated"), steps=60)


def test_other_rules_and_settings():
    check(2, ("much", "sign", "by layer", "all statistics", "mean"), steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
def test_more_ranks(ranks):
    check(ranks, tuple(CASES), k=8)


def numbers(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_goes_from_one_process_to_two_ranks_to_four_and_back(tmp_path):
    """Dropout, batch norm, plateau: whoever makes the steps, they are the same."""
    whole = fitted(make("much", tmp_path / "whole"), 40)
    folder = tmp_path / "run"
    fitted(make("much", folder), 10)
    run_ranks(fit_in_folder, 2, "much", str(folder), 20)
    found = run_ranks(fit_in_folder, 4, "much", str(folder), 30)
    assert equal(found[0], found[3])
    config = (folder / "config.yaml").read_text()
    assert config == (tmp_path / "whole" / "config.yaml").read_text().replace("40", "30")
    last = fitted(make("much", folder), 40)
    assert last["accepted"] == whole["accepted"][30:]
    assert last["history"]["loss"] == whole["history"]["loss"]
    for key, value in whole["model"].items():
        torch.testing.assert_close(last["model"][key], value, rtol=1e-6, atol=1e-6)
    assert numbers(folder)["updates"] == numbers(tmp_path / "whole")["updates"]


def test_rank_0_writes_what_every_rank_reads(tmp_path):
    found = run_ranks(fit_in_folder, 2, "much", str(tmp_path / "run"), 20)
    run = load_run(tmp_path / "run")
    assert equal(run.scalars.drop(columns="seconds").to_dict("list"), found[1]["history"])
    assert run.summary["status"] == "finished" and "best_test_accuracy" in run.summary
    assert equal(
        torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"],
        found[1]["model"],
    )
    # What has ended is returned as it is.
    again = run_ranks(fit_in_folder, 2, "much", str(tmp_path / "run"), 20)
    assert equal(again[0]["history"], found[0]["history"]) and again[0]["accepted"] == []
