"""Where the rows wait: the same decisions everywhere, half the memory in bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from watched_loops import batches, network, same, sgd, state_of, train

from gafscope.aggregation import GAF
from gafscope.data.digits import read_digits
from gafscope.geometry import gramian
from gafscope.instruments import watch
from gafscope.instruments.memory import Rows


def watched(data, **options):
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1, **options) as scope:
        train(model, optimizer, data)
    return state_of(model, optimizer), scope.run


@pytest.mark.parametrize("memory", ["cpu", "disk"])
def test_other_places_give_the_same_numbers(memory):
    data = batches(4, 3)
    expected, right = watched(data)
    state, run = watched(data, memory=memory)
    assert same(expected, state)
    for step in range(4):
        np.testing.assert_array_equal(run.matrix(step), right.matrix(step))


def test_bf16_changes_no_decision_in_1000_steps_of_the_demo():
    source = read_digits()
    inputs, labels = source.inputs.flatten(1), source.labels.clone()
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(labels), generator=generator) < 0.4
    labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True)
    chosen = torch.randint(len(labels), (1000, 2, 20), generator=generator)
    data = [[(inputs[i], labels[i]) for i in two] for two in chosen]
    with (
        watch(model, optimizer, filter=GAF(tau=0.75), every=1000) as acts,
        watch(
            model, optimizer, rule=GAF(tau=0.75), memory="bf16", layers=False, every=1
        ) as observes,
    ):
        train(model, optimizer, data)
    right, found = acts.run.scalars, observes.run.scalars
    assert found.accepted.tolist() == right.accepted.tolist()
    assert 20 < right.stepped.sum() < 980
    distances = [np.array([row[1] for row in run.distance_to_sum]) for run in (right, found)]
    assert 0 < np.abs(distances[0] - distances[1]).max() < 1e-3


def test_bf16_does_not_touch_what_a_filter_does():
    data = batches(8, 4)
    assert same(
        watched(data, filter=GAF(tau=0.6))[0], watched(data, filter=GAF(tau=0.6), memory="bf16")[0]
    )


def rows_of(memory, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = {"a": nn.Parameter(torch.zeros(400, 1000)), "b": nn.Parameter(torch.zeros(7))}
    rows = Rows(memory)
    given = [
        [torch.randn(p.shape, generator=generator) for p in parameters.values()] for _ in "x" * k
    ]
    for row in given:
        rows.add(row)
    return rows, parameters, given


def test_bf16_takes_half_the_memory():
    rows, parameters, _ = rows_of("bf16")
    held = sum(part.nbytes for i in range(3) for part in rows._rows[i])
    assert held * 2 == 3 * sum(p.nbytes for p in parameters.values())


@pytest.mark.parametrize("layers", [True, False])
def test_the_gramian_is_that_of_the_flat_rows(layers):
    rows, parameters, given = rows_of("rows")
    found = rows.gramian(parameters, layers, 2.0)
    flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in given])
    torch.testing.assert_close(found.matrix, gramian(flat) / 4, rtol=1e-12, atol=1e-9)
    assert list(found.layers) == (["a", "b"] if layers else [])


def test_missing_parts_are_zero_and_channels_last_needs_no_copy():
    parameter = nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last))
    rows = Rows("rows")
    part = torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)
    for row in ([part], [None], [2 * part]):
        rows.add(row)
    square = float(part.double().square().sum())
    matrix = rows.gramian({"w": parameter}, True, 1.0).matrix
    assert matrix[0].tolist() == pytest.approx([square, 0, 2 * square])
    assert rows.stacked({"w": parameter}, 1.0).named["w"][1].abs().sum() == 0


def test_rows_on_disk_are_written_over_and_removed():
    rows, parameters, given = rows_of("disk")
    folder = Path(rows._folder.name)
    assert len(list(folder.iterdir())) == 6
    first = rows.gramian(parameters, False, 1.0).matrix
    rows.drop()
    for row in given[::-1]:
        rows.add(row)
    second = rows.gramian(parameters, False, 1.0).matrix
    torch.testing.assert_close(second, first.flip(0, 1))
    rows.close()
    assert not folder.exists()
