"""A run that gets nowhere is noticed, told once, and stopped where that is wished."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from trainer_parts import macrobatches, network, sampler, trainer_of

from gafscope.aggregation import GAF, Decision, Mean, RandomSkip, Yoked
from gafscope.records import load_run
from gafscope.trainer.watchdog import Watchdog


def named_tau(text: str) -> float:
    return float(re.search(r"tau = ([\d.]+) would", text)[1])


@pytest.mark.parametrize("k", [2, 4])
def test_a_stall_is_told_once_with_quantiles_and_a_tau(k, caplog):
    trainer = trainer_of(network(), aggregator=GAF(0.01), microbatches=k)
    with caplog.at_level(logging.WARNING, "gafscope"):
        history = trainer.fit(sampler(k), steps=450)
    assert not history["stepped"].any()
    (record,) = caplog.records
    text = record.getMessage()
    assert "to step 199" in text
    for share in ("5%", "25%", "50%", "75%", "95%"):
        assert share in text
    # Rejected macrobatches compare with their first gradient only.
    seen = np.asarray(history["distance_to_sum"].tolist())[:200, 1:]
    assert f"50% {np.median(seen):.4f}" in text
    accepted = (seen <= named_tau(text)).any(axis=1).sum()
    assert 20 <= accepted <= 21


def test_the_tau_that_is_named_accepts_a_tenth_when_distances_are_all_alike():
    dog = Watchdog()
    distances = torch.linspace(0.999901, 0.999949, 200, dtype=torch.float64)
    for step, distance in enumerate(distances.tolist()):
        advice = dog.see(step, decision([float("nan"), distance]))
    tau = named_tau(advice)
    assert 20 <= int((distances <= tau).sum()) <= 25


def decision(distances: list[float], step: bool = False, finite: bool = True) -> Decision:
    k = len(distances)
    return Decision(
        weights=torch.full((k,), 1 / k if step else 0.0, dtype=torch.float64),
        accepted=torch.full((k,), step),
        step=step,
        distances=torch.tensor(distances, dtype=torch.float64),
        finite=torch.full((k,), finite),
    )


def test_one_update_in_between_starts_the_count_anew():
    dog = Watchdog()
    quiet = decision([float("nan"), 1.0])
    update = decision([float("nan"), 1.0], step=True)
    told = [dog.see(step, update if step == 199 else quiet) for step in range(420)]
    assert [step for step, text in enumerate(told) if text] == [399]


def test_advice_without_any_known_distance():
    dog = Watchdog()
    unknown = [float("nan")] * 2
    texts = [dog.see(step, decision(unknown)) for step in range(200)]
    assert "no distance" in texts[-1]


def test_the_tau_that_is_named_starts_the_run(caplog):
    with caplog.at_level(logging.WARNING, "gafscope"):
        trainer_of(network(), aggregator=GAF(0.01)).fit(sampler(2), steps=200)
    tau = named_tau(caplog.text)
    history = trainer_of(network(), aggregator=GAF(tau)).fit(sampler(2), steps=200)
    assert history["stepped"].sum() >= 5


def test_a_stalled_run_can_stop(tmp_path):
    def fit(steps: int, on_stall: str = "stop"):
        trainer = trainer_of(
            network(),
            aggregator=GAF(0.01),
            on_stall=on_stall,
            run_dir=tmp_path / "r",
            record_layers_every=0,
        )
        return trainer.fit(sampler(2), steps), trainer.status

    history, status = fit(1000)
    assert (len(history), status) == (200, "stalled")
    assert load_run(tmp_path / "r").summary["status"] == "stalled"
    # Asked again, or for more steps, it has stalled still.
    assert fit(1000)[1] == "stalled"
    history, status = fit(2000)
    assert (len(history), status) == (200, "stalled")
    # Whoever wants it to go on all the same can have that.
    history, status = fit(2000, on_stall="warn")
    assert (len(history), status) == (2000, "finished")
    assert load_run(tmp_path / "r").summary["steps"] == 2000


def test_a_warning_before_an_interruption_is_not_repeated_after_it(tmp_path, caplog):
    def fit(steps: int):
        trainer = trainer_of(
            network(), aggregator=GAF(0.01), run_dir=tmp_path / "r", record_layers_every=0
        )
        trainer.fit(sampler(2), steps)

    with caplog.at_level(logging.WARNING, "gafscope"):
        fit(150)
        assert not caplog.records
        fit(250)
        assert "to step 199" in caplog.text
        fit(600)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("gate", [RandomSkip(1.0), Yoked([False] * 260)])
def test_controls_do_not_count_as_stalls(gate, caplog):
    with caplog.at_level(logging.WARNING, "gafscope"):
        trainer = trainer_of(network(), aggregator=Mean(), gate=gate, on_stall="stop")
        history = trainer.fit(macrobatches(10, 2), steps=260)
    assert trainer.status == "finished"
    assert not history["stepped"].any()
    assert not caplog.records
