"""Loggers: what they are given, and that it is in the files that they write."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from watched_loops import batches, network, sgd, train

from gafscope.aggregation import GAF
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.instruments import Record, watch
from gafscope.instruments.loggers import LogTo, MLflow, TensorBoard, WeightsAndBiases

SCALARS = {
    f"gafscope/{name}"
    for name in ("accepted", "stepped", "distance_mean", "grad_norm", "lr", "seconds")
}
HISTOGRAMS = {f"gafscope/{name}" for name in ("distance", "distance_to_sum", "norm")}
IMAGE = "gafscope/distances"


class Kept:
    """A logger that keeps what it is given, in order."""

    def __init__(self):
        self.calls = []

    def scalars(self, values, step, /):
        self.calls.append(("scalars", dict(values), step))

    def histogram(self, name, values, step, /):
        self.calls.append((name, values.tolist(), step))

    def image(self, name, pixels, step, /):
        self.calls.append((name, pixels, step))


def logged(logger, steps=3):
    """Train under watch and log every step; give the record."""
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1, listeners=[LogTo(logger)]) as scope:
        train(model, optimizer, batches(steps, 3))
    return scope.run


def cosine_distances(matrix):
    """Give the distances of three rows, one a pair."""
    norms = np.sqrt(matrix.diagonal())
    return [1 - matrix[i, j] / (norms[i] * norms[j]) for i, j in [(0, 1), (0, 2), (1, 2)]]


def test_what_a_record_becomes_by_hand():
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-6.0, 0.0]], dtype=torch.float64)
    row = {"step": 7, "loss": math.nan, "accepted": 2, "stepped": True, "grad_norm": 5.0}
    row |= {"distance_to_sum": [math.nan, 1.0, 1.6], "not_finite": []}
    kept = Kept()
    LogTo(kept)(Record(7, row, Gramian(rows @ rows.T, {}, engine="hooks")))
    *distributions, (name, pixels, _), scalars = kept.calls
    assert distributions == [
        ("gafscope/distance_to_sum", [1.0, 1.6], 7),
        ("gafscope/distance", [1.0, 2.0, 1.0], 7),
        ("gafscope/norm", [3.0, 4.0, 6.0], 7),
    ]
    values = {"gafscope/accepted": 2.0, "gafscope/stepped": 1.0, "gafscope/grad_norm": 5.0}
    assert scalars == ("scalars", values, 7)
    assert name == IMAGE
    assert pixels.dtype == np.uint8
    side = len(pixels) // 3
    assert pixels.shape == (3 * side, 3 * side, 3)
    blocks = pixels.reshape(3, side, 3, side, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()  # one colour an entry
    colours = blocks[:, 0, :, 0].astype(int)
    aligned, orthogonal, opposed = colours[0, 0], colours[0, 1], colours[0, 2]
    assert aligned[2] > aligned[0]
    assert (orthogonal > 240).all()
    assert opposed[0] > opposed[2]


def test_a_row_that_is_not_finite_is_grey_and_in_no_histogram():
    matrix = torch.tensor([[1.0, math.nan], [math.nan, math.nan]], dtype=torch.float64)
    row = {"step": 0, "distance_to_sum": [math.nan, math.nan]}
    kept = Kept()
    LogTo(kept)(Record(0, row, Gramian(matrix, {}, engine="hooks")))
    assert [call[0] for call in kept.calls] == ["gafscope/norm", IMAGE, "scalars"]
    assert kept.calls[1][1][-1, -1].tolist() == [191, 191, 191]


def test_steps_of_a_filter_that_are_not_measured_have_no_matrix():
    kept, model = Kept(), network()
    optimizer = sgd(model)
    rule = GAF(tau=2.0)
    with watch(model, optimizer, every=2, filter=rule, listeners=[LogTo(kept)]):
        train(model, optimizer, batches(2, 3))
    assert [call[0] for call in kept.calls if call[2] == 1] == [
        "gafscope/distance_to_sum",
        "scalars",
    ]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = logged(TensorBoard(tmp_path / "board"))
    events = accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= SCALARS
    assert set(tags["histograms"]) == HISTOGRAMS
    assert tags["images"] == [IMAGE]
    found = events.Scalars("gafscope/distance_mean")
    assert [event.step for event in found] == [0, 1, 2]
    values = [event.value for event in found]
    assert values == pytest.approx(run.scalars.distance_mean.tolist(), rel=1e-6)
    assert events.Images(IMAGE)[0].width >= 256


def test_tensorboard_takes_the_loops_own_writer(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        logged(TensorBoard(writer))
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_and_biases_offline(tmp_path):
    wandb = pytest.importorskip("wandb")
    with pytest.raises(UserError, match=r"none is active: call wandb\.init"):
        WeightsAndBiases()
    with wandb.init(mode="offline", dir=tmp_path, project="test") as run:
        record = logged(WeightsAndBiases())
        summary = dict(run.summary)
        images = list(tmp_path.glob("wandb/offline-*/files/media/images/gafscope/*.png"))
    assert summary["gafscope/step"] == 2
    last = record.scalars.distance_mean.tolist()[-1]
    assert summary["gafscope/distance_mean"] == pytest.approx(last)
    assert set(summary) >= SCALARS | HISTOGRAMS | {IMAGE}
    assert len(images) == 3


def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    mlflow = pytest.importorskip("mlflow")
    with pytest.raises(UserError, match=r"none is active: call mlflow\.start_run"):
        MLflow()
    with mlflow.start_run() as active:
        record = logged(MLflow())
    client, run_id = mlflow.MlflowClient(), active.info.run_id
    assert set(client.get_run(run_id).data.metrics) >= SCALARS
    history = client.get_metric_history(run_id, "gafscope/distance_mean")
    assert [metric.step for metric in history] == [0, 1, 2]
    values = [metric.value for metric in history]
    assert values == pytest.approx(record.scalars.distance_mean.tolist())
    images = [info.path for info in client.list_artifacts(run_id, "images")]
    assert sum(path.endswith(".png") for path in images) == 3
    history = client.get_metric_history(run_id, "gafscope/distance/upper_quartile")
    # Of the three distances of three rows, the mean of the upper two.
    distances = np.sort([cosine_distances(record.matrix(step)) for step in range(3)])
    assert [metric.value for metric in history] == pytest.approx(distances[:, 1:].mean(1).tolist())
