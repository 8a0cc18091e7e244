from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gafscope.models._parts import map_norm, require_sizes


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (32, 16), (48, 24), (64, 32), (96, 32)]
)
def test_groups_divide_the_channels_and_hold_at_least_two(channels, groups):
    norm = map_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


@pytest.mark.parametrize("channels", [4, 16, 64, 512])
def test_group_norm_lets_a_map_of_a_single_pixel_through(channels):
    x = torch.randn(2, channels, 1, 1, generator=torch.Generator().manual_seed(0))
    assert map_norm("group", channels)(x).abs().min() > 0


def test_any_kind_of_whole_number_is_a_size():
    require_sizes(width=np.int64(3), depth=1)
