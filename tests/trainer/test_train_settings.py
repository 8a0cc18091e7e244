"""`train`: from settings to a run, and settings that are refused before anything is written."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from gafscope.errors import UserError
from gafscope.records import load_run
from gafscope.trainer import TrainSettings, job, train
from gafscope.trainer.options import parse_options
from gafscope.trainer.train import run_config, run_folder

QUICK = TrainSettings(
    steps=6, model_options={"hidden": "8"}, microbatch_size=5, threads=1, progress=False
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_each_optimizer_trains(optimizer):
    run = train(replace(QUICK, optimizer=optimizer, rule="mean", lr=0.01, weight_decay=0.1))
    assert run.summary["status"] == "finished"
    assert run.scalars["stepped"].all()
    state = torch.load(run.folder / "checkpoint.pt", weights_only=True)["optimizer"]
    kinds = {"sgd": "momentum_buffer", "rmsprop": "square_avg"}
    assert kinds.get(optimizer, "exp_avg") in state["state"][0]
    group = state["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.1)
    assert group.get("nesterov", True)
    assert group.get("momentum", 0.9) == 0.9


def test_sgd_without_momentum():
    run = train(replace(QUICK, momentum=0.0, rule="mean"))
    group = torch.load(run.folder / "checkpoint.pt", weights_only=True)["optimizer"]
    assert not group["param_groups"][0]["nesterov"]


@pytest.mark.parametrize("rule", ["gaf", "halving-gaf", "mean"])
def test_each_rule_trains(rule):
    run = train(replace(QUICK, rule=rule, tau=2.0, microbatches=3, clip_norm=5.0))
    assert (run.scalars["accepted"] == 3).all()
    assert run.scalars["stepped"].all()
    assert run.config["rule"] == rule


def test_every_sample_is_a_microbatch():
    run = train(replace(QUICK, microbatches="samples", microbatch_size=9, tau=2.0))
    assert (run.scalars["accepted"] == 9).all()
    assert {len(row) for row in run.scalars["distance_to_sum"]} == {9}
    assert run.config["microbatches"] == "samples"


@pytest.mark.parametrize(
    ("model", "options", "data"),
    [
        ("cnn", None, {"samples": "60", "classes": "3", "shape": "3,16,16"}),
        ("vit", {"dim": "12", "depth": "1", "heads": "2"}, None),
        ("resnet18", {"width": "4", "norm": "group"}, {"samples": "60", "shape": "3,16,16"}),
    ],
)
def test_networks_and_their_options(model, options, data):
    run = train(
        replace(
            QUICK,
            model=model,
            model_options=options,
            data="white-noise" if data else "digits",
            data_options=data,
            steps=2,
            channels_last=model != "vit",
            rule="mean",
        )
    )
    assert run.scalars["stepped"].all()


def test_plateau_lowers_the_rate():
    settings = replace(
        QUICK, scheduler="plateau", patience=0, validate_every=1, rule="mean", lr=1e-9, steps=8
    )
    lrs = train(settings).scalars["lr"]
    assert lrs.iloc[0] == 1e-9
    # Rates this small are left where they are by torch; a large one falls.
    lrs = train(replace(settings, lr=50.0)).scalars["lr"]
    assert lrs.iloc[-1] < 50.0 / 9


def test_controls():
    gaf = train(replace(QUICK, tau=0.6, steps=30))
    yoked = replace(
        QUICK, rule="mean", yoked_to=str(gaf.folder), sampling_seed=9, steps=30, run_dir="yoked"
    )
    run = train(yoked)
    assert run.scalars["stepped"].tolist() == gaf.scalars["stepped"].tolist()
    assert 0 < gaf.scalars["stepped"].sum() < 30
    assert run.scalars["loss"].tolist() != gaf.scalars["loss"].tolist()
    skipping = train(replace(QUICK, rule="mean", skip_rate=1.0))
    assert not skipping.scalars["stepped"].any()
    limited = train(replace(QUICK, rule="mean", max_updates=2))
    assert (len(limited.scalars), limited.summary["status"]) == (2, "all updates made")


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    train(replace(QUICK, threads=before + 1))
    assert torch.get_num_threads() == before
    with pytest.raises(UserError, match="threads must be at least 1"):
        train(replace(QUICK, threads=0))


def test_the_seed_decides_everything_and_the_caller_s_generator_nothing():
    def end(seed: int, folder: str):
        run = train(
            replace(QUICK, seed=seed, run_dir=folder, model_options={"dropout": "0.2"}, steps=10)
        )
        return run.scalars.drop(columns="seconds").map(repr)

    torch.manual_seed(1)
    first = end(3, "a")
    torch.manual_seed(2)
    assert first.equals(end(3, "b"))
    assert not first.equals(end(4, "c"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": "gav"}, "Unknown rule 'gav'. Did you mean 'gaf'?"),
        ({"rule": "halving"}, "Did you mean 'halving-gaf'?"),
        ({"optimizer": "adamm"}, "Unknown optimizer 'adamm'. Did you mean 'adam'?"),
        ({"scheduler": "platau"}, "Unknown scheduler 'platau'. Did you mean 'plateau'?"),
        ({"model": "resnet"}, "Unknown model 'resnet'. Did you mean 'resnet"),
        ({"model_options": {"hiden": "8"}}, "'hiden'. Did you mean 'hidden'?"),
        ({"data": "digit"}, "Unknown dataset 'digit'. Did you mean 'digits'?"),
        ({"data_options": {"shape": "3"}}, "Unknown option of dataset 'digits' 'shape'"),
        ({"balance": "even"}, "Unknown balance 'even'"),
        ({"lr": 0.0}, "lr, the learning rate, must be positive, but is 0.0"),
        ({"lr": -1.0}, "must be positive, but is -1.0"),
        ({"lr": float("nan")}, "must be positive"),
        ({"lr": float("inf")}, "must be positive"),
        ({"momentum": -0.5}, "optimizer sgd refuses its settings"),
        ({"optimizer": "adam", "weight_decay": -1.0}, "optimizer adam refuses its settings"),
        ({"tau": 2.5}, "tau"),
        ({"tau": -0.1}, "tau"),
        ({"tau": float("nan")}, "tau"),
        ({"microbatches": 1}, "microbatches=1 leaves nothing to compare"),
        ({"microbatches": 0}, "microbatches must be at least 1"),
        ({"microbatch_size": 0}, "microbatch_size"),
        ({"microbatch_size": 5000}, "One macrobatch must fit into the data"),
        ({"microbatch_size": 7, "balance": "given"}, "multiple of the number of classes"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"patience": -1, "scheduler": "plateau"}, "patience must be at least 0"),
        ({"yoked_to": "runs/a", "skip_rate": 0.5}, "give one of them, not both"),
        ({"yoked_to": "nowhere"}, "nowhere does not exist"),
        ({"skip_rate": 1.5}, "must lie in [0, 1]"),
        ({"max_updates": 0}, "max_updates must be at least 1"),
        ({"device": "cuda:77"}, "Cannot use device 'cuda:77'"),
        ({"device": "gpu"}, "Cannot use device 'gpu'"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16"),
        ({"batch_norm": "some"}, "batch_norm must be one of"),
        ({"on_stall": "shout"}, "on_stall must be one of"),
        ({"clip_norm": -1.0}, "clip_norm must be positive"),
        ({"label_noise": 1.0}, "label_noise"),
        ({"validation": 0.0}, "validation"),
        ({"augment": True, "data": "white-noise", "data_options": {"shape": "9,"}}, "image"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_settings_are_refused_before_anything_is_written(change, words, tmp_path):
    with pytest.raises(UserError) as caught:
        train(replace(QUICK, **change))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"optimizer": "sdg"}, {"model": "nlp"}, {"lr": 0.0}])
def test_a_typing_error_is_found_before_data_are_downloaded(change, monkeypatch):
    def load(*_, **__):
        raise AssertionError("the data were read first")

    monkeypatch.setattr(job, "load_data", load)
    with pytest.raises(UserError):
        train(replace(QUICK, data="cifar10", download=True, **change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match=r"Cannot use device 'cuda': .*Use cpu, cuda"):
        train(replace(QUICK, device="cuda"))
    assert train(replace(QUICK, device="auto")).provenance["device"] == "cpu"


def test_a_control_cannot_be_yoked_to_a_shorter_run(tmp_path):
    train(replace(QUICK, run_dir="short"))
    with pytest.raises(UserError, match="short has 6 steps, too few for a run of 7"):
        train(replace(QUICK, rule="mean", yoked_to="short", steps=7, run_dir="yoked"))
    assert not Path("yoked").exists()


def test_the_same_settings_have_the_same_folder():
    folder = run_folder(QUICK)
    assert folder == run_folder(replace(QUICK))
    assert folder.parent == Path("runs")
    assert folder.name.startswith("digits-mlp-gaf-tau0.97-seed0-")
    # Where and how, and for how long, does not make it another run.
    for same in (
        {"device": "cpu"},
        {"progress": True},
        {"download": True},
        {"download_url": "http://a"},
        {"data_dir": "somewhere"},
        {"steps": 7},
        {"keep_checkpoints": 3},
        {"rank_timeout": 9.0},
    ):
        assert run_folder(replace(QUICK, **same)) == folder, same
    assert run_folder(replace(QUICK, run_dir="mine")) == Path("mine")
    assert "tau" not in run_folder(replace(QUICK, rule="mean")).name


OTHER = {int: 3, float: 0.25, str: "x", bool: True, type(None): 0.5, dict: {"hidden": "9"}}
WHERE = {
    *("download", "download_url", "device", "run_dir", "progress", "data_dir", "steps"),
    *("keep_checkpoints", "rank_timeout", "device_decision"),
}


@pytest.mark.parametrize("name", [f.name for f in fields(QUICK) if f.name not in WHERE])
def test_other_settings_have_another_folder(name):
    # A rule is made when its folder is named, so it must exist.
    known = {"rule": "mean", "rule_options": {"anchor": "best"}}
    other = known.get(name, OTHER[type(getattr(QUICK, name))])
    changed = replace(QUICK, **{name: other})
    assert run_folder(changed) != run_folder(QUICK)
    assert run_config(changed)[name] == other or name == "yoked_to"


def test_folders_of_images_are_told_apart_by_their_place():
    def folder(place):
        return run_folder(replace(QUICK, data="folder", data_dir=place))

    assert folder("a") != folder("b")
    assert folder("a") == folder(str(Path("a").resolve()))


def test_the_config_can_be_read_back():
    settings = replace(QUICK, data_options=None, model_options={"hidden": [16, 8]})
    run = train(settings)
    written = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert written == run.config
    # The config names the threshold that the rule took by itself.
    assert TrainSettings(**written, progress=False) == replace(settings, tau=0.97)


def test_a_run_is_prolonged_and_returned_again():
    first = train(QUICK)
    assert len(train(replace(QUICK, steps=9)).scalars) == 9
    whole = train(replace(QUICK, steps=9, run_dir="whole"))
    again = load_run(first.folder)
    assert repr(again.scalars.drop(columns="seconds").values.tolist()) == repr(
        whole.scalars.drop(columns="seconds").values.tolist()
    )
    stamp = (first.folder / "scalars.jsonl").stat().st_mtime_ns
    train(replace(QUICK, steps=9))
    assert (first.folder / "scalars.jsonl").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e-1", 0.1),
        ("1e3", 1000.0),
        ("256,128", (256, 128)),
        ("256,", (256,)),
        ("1, 28, 28", (1, 28, 28)),
        ("true", True),
        ("False", False),
        ("none", None),
        ("null", None),
        ("imagenet", "imagenet"),
        ("a: b", "a: b"),
        ("~/data", "~/data"),
        ("@home", "@home"),
        ("2020-01-01", "2020-01-01"),
        ("", ""),
        (7, 7),
        ([8, 4], (8, 4)),
        (None, None),
    ],
)
def test_values_of_options(text, value):
    found = parse_options({"name": text})["name"]
    assert found == value
    assert type(found) is type(value)


def test_no_options():
    assert parse_options(None) == {}
    assert parse_options({}) == {}
