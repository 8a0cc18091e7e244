"""The Gramian of gradients that are held as they came, against explicit float64 rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gafscope.geometry import held_gramian


def gradients(k: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1200, 401), (7,), (), (64, 48, 5, 5), (3, 3)]
    return [
        [torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(k)
    ]


def explicit(rows: list[list[Tensor]]) -> Tensor:
    flat = torch.stack([torch.cat([part.double().reshape(-1) for part in row]) for row in rows])
    return flat @ flat.T


@pytest.mark.parametrize("k", [1, 2, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_gramian_of_the_rows(k, dtype):
    rows = gradients(k, dtype=dtype)
    found, expected = held_gramian(rows), explicit(rows)
    assert found.dtype == torch.float64
    scale = expected.diagonal().max()
    assert (found - expected).abs().max() < 2e-8 * scale
    assert torch.equal(found, found.T)


def test_a_distance_of_5e_7_is_right_to_one_percent():
    rows = gradients(1)
    rows.append([part + 1e-3 * torch.randn_like(part) for part in rows[0]])
    found, expected = held_gramian(rows), explicit(rows)
    distances = [1 - m[0, 1] / (m[0, 0] * m[1, 1]).sqrt() for m in (found, expected)]
    assert distances[0] == pytest.approx(float(distances[1]), rel=0.01)


def test_channels_last_memory_is_read_as_it_lies():
    rows = gradients(3)
    last = [
        [p.to(memory_format=torch.channels_last) if p.ndim == 4 else p for p in r] for r in rows
    ]
    mixed = [last[0], rows[1], last[2]]
    for held in (last, mixed):
        torch.testing.assert_close(held_gramian(held), explicit(rows), rtol=1e-8, atol=1e-3)


def test_unused_parameters_are_zeros_and_missing_gradients_nan():
    rows = gradients(4)
    used = [
        [None if (i + j) % 3 == 0 else part for j, part in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    zeros = [
        [torch.zeros_like(part) if (i + j) % 3 == 0 else part for j, part in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    used[2] = []
    found = held_gramian(used)
    assert found[2].isnan().all() and found[:, 2].isnan().all()
    keep = torch.tensor([0, 1, 3])
    expected = explicit([zeros[i] for i in keep])
    torch.testing.assert_close(found[keep][:, keep], expected, rtol=1e-8, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_what_is_not_finite_spoils_its_own_row_only(value, place):
    rows = gradients(3)
    expected = explicit(rows)
    rows[1][place].view(-1)[5] = value
    found = held_gramian(rows)
    assert found[1].isnan().all() and found[:, 1].isnan().all()
    torch.testing.assert_close(found[::2, ::2], expected[::2, ::2], rtol=1e-8, atol=1e-3)


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_tiny_and_huge_gradients_neither_vanish_nor_overflow(factor):
    rows = [[part * factor for part in row] for row in gradients(2)]
    found, expected = held_gramian(rows), explicit(rows)
    assert (found - expected).abs().max() < 1e-6 * expected.max()


def test_all_gradients_missing():
    assert held_gramian([[], []]).isnan().all()
