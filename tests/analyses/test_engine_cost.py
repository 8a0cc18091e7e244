"""The table of engines: every method beside its base, at every size."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from gafscope.analyses import cost_methods
from gafscope.analyses.cost_cases import make_case
from gafscope.analyses.engine_cost import EngineCostSettings, measure_engine_cost
from gafscope.errors import UserError
from gafscope.gradients import gramian

TINY = {
    "models": ("cnn",),
    "samples": (4,),
    "microbatches": ("2x3",),
    "peers": (),
    "repeats": 2,
    "limit": 1e6,  # whatever else the machine is doing
}
COLUMNS = [
    *("model", "k", "u", "n", "parameters", "method", "base"),
    *("seconds", "seconds_low", "seconds_high", "ratio", "ratio_low", "ratio_high"),
    *("memory", "memory_ratio", "floor", "error", "note"),
]


@pytest.fixture(scope="module")
def table():
    return measure_engine_cost(EngineCostSettings(**TINY, engines=("loop", "vmap")))


def test_one_row_a_method_and_size(table):
    assert table.columns.tolist() == COLUMNS
    single, several = table[table["u"] == 1], table[table["u"] == 3]
    steps = ["averaging step", "GAF step"]
    assert single["method"].tolist() == ["plain", "loop", "vmap", *steps]
    assert several["method"].tolist() == ["plain", "loop", "vmap"]
    assert set(zip(single["k"], single["n"], strict=True)) == {(4, 4)}
    assert set(zip(several["k"], several["n"], strict=True)) == {(2, 6)}
    assert set(table["parameters"]) == {94_538}


def test_ratios_are_to_the_base(table):
    bases = table[table["method"] == table["base"]]
    assert (bases[["ratio", "ratio_low", "ratio_high", "memory_ratio"]] == 1).all(axis=None)
    (gaf,) = table[table["method"] == "GAF step"].to_dict("records")
    averaging = table[table["method"] == "averaging step"].iloc[0]
    assert gaf["base"] == "averaging step"
    assert gaf["memory_ratio"] == gaf["memory"] / averaging["memory"]
    numbers = table[["seconds", "ratio", "memory", "memory_ratio"]]
    assert (numbers > 0).all(axis=None)
    assert (table["ratio_low"] <= table["ratio"]).all()
    assert (table["ratio"] <= table["ratio_high"]).all()


def test_gramians_are_checked_against_float64(table):
    gramians = table[table["method"].isin(["loop", "vmap"])]
    assert (gramians["error"] > 0).all()  # float32 is not float64
    assert (gramians["error"] < 1e-5).all()
    assert (table["note"] == "").all()


def test_a_wrong_gramian_is_noted(monkeypatch):
    right = cost_methods.gramian

    def wrong(*arguments, **options):
        result = right(*arguments, **options)
        if options["engine"] == "vmap":
            result.matrix[0, 1] *= 2
        return result

    monkeypatch.setattr(cost_methods, "gramian", wrong)
    settings = EngineCostSettings(**{**TINY, "microbatches": ()}, engines=("loop", "vmap"))
    notes = measure_engine_cost(settings).set_index("method")["note"]
    assert notes["vmap"].startswith("inexact: relative error")
    assert notes["loop"] == ""


def test_a_variant_follows_a_colon(monkeypatch):
    asked = []
    right = cost_methods.gramian

    def spy(*arguments, engine, **options):
        if engine == "ghost":
            asked.append(options)
        return right(*arguments, engine="loop", layers=options.get("layers", True))

    monkeypatch.setattr(cost_methods, "gramian", spy)
    engines = ("ghost", "ghost:bf16", "ghost:whole")
    table = measure_engine_cost(EngineCostSettings(**{**TINY, "samples": ()}, engines=engines))
    assert table["method"].tolist() == ["plain", *engines]
    assert asked[:3] == [{}, {"precision": "bf16"}, {"layers": False}]
    assert table["note"].tolist() == ["", *["measured by loop"] * 3]


def test_auto_says_which_engine_did_it():
    settings = EngineCostSettings(**{**TINY, "samples": ()}, engines=("auto", "loop"))
    notes = measure_engine_cost(settings).set_index("method")["note"]
    case = make_case("cnn", 6)
    used = gramian(case.model, case.loss, case.batch, 2).engine
    assert notes["auto"].startswith(f"measured by {used}")
    assert notes["loop"] == ""


def test_engines_far_too_slow_are_not_timed():
    settings = EngineCostSettings(
        models=("mlp",), samples=(16,), microbatches=(), engines=("loop",), peers=(), limit=2.0
    )
    table = measure_engine_cost(settings).set_index("method")
    assert "not timed" in table.loc["loop", "note"]
    assert "limit of 2" in table.loc["loop", "note"]
    assert table.loc["loop", ["seconds", "ratio", "memory"]].isna().all()
    assert table.loc["loop", "floor"] > 0


def test_an_engine_that_fails_says_why_and_the_others_go_on(monkeypatch):
    right = cost_methods.gramian

    def failing(*arguments, **options):
        if options["engine"] == "vmap":
            raise RuntimeError("no room\nsecond line")
        return right(*arguments, **options)

    monkeypatch.setattr(cost_methods, "gramian", failing)
    settings = EngineCostSettings(**{**TINY, "samples": ()}, engines=("vmap", "loop"))
    table = measure_engine_cost(settings).set_index("method")
    assert table.loc["vmap", "note"] == "failed: RuntimeError: no room"
    assert table.loc["loop", "ratio"] > 0


def test_peers_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = EngineCostSettings(
        **{**TINY, "microbatches": (), "peers": ("opacus", "torchjd")}, engines=("loop",)
    )
    methods = set(measure_engine_cost(settings)["method"])
    assert methods == {"plain", "loop", "averaging step", "GAF step"}


def test_the_table_so_far_is_handed_out_after_each_size():
    seen = []
    settings = EngineCostSettings(**{**TINY, "models": ("mlp", "cnn"), "samples": ()}, engines=())
    table = measure_engine_cost(settings, keep=seen.append)
    assert [len(part) for part in seen] == [1, 2]
    assert seen[-1].equals(table)


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    settings = EngineCostSettings(**{**TINY, "samples": ()}, engines=(), threads=before + 1)
    seen = []
    measure_engine_cost(settings, keep=lambda table: seen.append(torch.get_num_threads()))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ("resnet81",)}, ["resnet81", "'resnet18'"]),
        ({"models": ()}, ["at least one model", "resnet18"]),
        ({"engines": ("gost",)}, ["gost", "'ghost'"]),
        ({"engines": ("ghost:fp16",)}, ["fp16", "'bf16'"]),
        ({"engines": ("ghost:hole",)}, ["hole", "'whole'"]),
        ({"peers": ("opcus",)}, ["opcus", "'opacus'"]),
        ({"repeats": 0}, ["repeats", "0"]),
        ({"limit": 0.5}, ["limit", "0.5"]),
        ({"threads": 0}, ["threads", "0"]),
        ({"samples": (1,)}, ["at least 2", "samples=(1,)"]),
        ({"microbatches": ("8",)}, ["8x2", "'8'"]),
        ({"microbatches": ("8x0",)}, ["8x2", "'8x0'"]),
        ({"samples": (), "microbatches": ()}, ["at least 2"]),
        ({"device": "gpu"}, ["gpu", "cuda"]),
    ],
)
def test_mistakes_are_explained(change, words):
    with pytest.raises(UserError) as caught:
        measure_engine_cost(EngineCostSettings(**change))
    for word in words:
        assert word in str(caught.value)
