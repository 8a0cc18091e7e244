from __future__ import annotations

import math

import torch

from gafscope.geometry import blank_rows, cross_gramian, finite_rows, gramian, zero_rows

ROWS = torch.tensor([[1.0, 2.0], [0.0, 0.0], [math.nan, 0.0], [1.0, math.inf], [0.0, -1e-20]])


def test_which_rows_are_finite_and_which_are_zero():
    matrix = gramian(ROWS)
    assert finite_rows(matrix).tolist() == [True, True, False, False, True]
    assert zero_rows(matrix).tolist() == [False, True, False, False, False]


def test_blanking_makes_every_kind_of_bad_product_nan():
    matrix = blank_rows(cross_gramian(ROWS, ROWS))
    bad = torch.tensor([False, False, True, True, False])
    assert torch.equal(matrix.isnan(), bad[:, None] | bad[None, :])
    assert torch.equal(matrix[~bad][:, ~bad], gramian(ROWS[~bad]))
