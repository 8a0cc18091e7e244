"""Where the time goes: shares and bytes against counts by hand."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from gafscope.analyses.cost_cases import Case, make_case
from gafscope.analyses.cost_methods import plain_pass
from gafscope.analyses.cost_traffic import OTHER, part_of, profiled, traffic, traffic_floor
from gafscope.analyses.parts_cost import PartsCostSettings, measure_parts_cost
from gafscope.cli import main
from gafscope.errors import UserError


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::addmm", "matrix products"),
        ("aten::addmm_", "matrix products"),
        ("aten::baddbmm_", "batched products"),
        ("aten::native_layer_norm_backward", "norms"),
        ("aten::index_select", "copies"),
        ("aten::sum", OTHER),
    ],
)
def test_operations_belong_to_parts(operation, part):
    assert part_of(operation) == part


def test_bytes_of_a_product_a_view_and_a_sum():
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    counted = traffic(lambda: (a @ b).T.flatten().sum())
    assert counted["matrix products"] == 4 * (6 + 12 + 8)
    # Flattening the transposed view copies it.
    assert counted["copies"] == 4 * (8 + 8)
    assert counted[OTHER] == 4 * (8 + 1)


def test_an_operand_that_is_given_twice_is_read_once():
    a = torch.ones(8)
    assert traffic(lambda: a * a).total() == 4 * (8 + 8)


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(4, 4, bias=False) for _ in range(2))

    def forward(self, x):
        return self.second(self.first(x))


def test_the_floor_of_two_layers_by_hand():
    n = 8
    case = Case(Square(), lambda m, b: m(b[0]).sum(1), (torch.ones(n, 4), torch.zeros(n)))
    plain = traffic(plain_pass(case)).total()
    forward = 2 * (n * 4 + 16 + n * 4)
    inputs = n * 4 + 16 + n * 4  # of the second layer only
    factors = 2 * (n * 4 + n * 4)
    # Each loss is a sum of 4, the loss a sum of n; the gradients of both are views.
    ends = (n * 4 + n) + (n + 1)
    least = 4 * (forward + inputs + factors + ends)
    # torch makes the gradient 1 of the loss, and lays an expanded one out before a product.
    assert least <= traffic_floor(case, 1.0) <= least + 4 * (2 + 2 * n * 4)
    assert traffic_floor(case, plain) == traffic_floor(case, 1.0) / plain
    assert all(p.requires_grad and p.grad is None for p in case.parameters)


def test_shares_of_time_add_up_and_the_profiler_is_quiet(capfd):
    shares = profiled(plain_pass(make_case("mlp", 4)))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["matrix products"] > 0
    assert capfd.readouterr().err == ""


def test_the_table_and_the_command(tmp_path, capsys):
    words = ["--models", "mlp", "--samples", "4", "--repeats", "1", "--output", str(tmp_path)]
    assert main(["cost", "--what", "parts", *words]) == 0
    table = pd.read_csv(tmp_path / "parts.csv")
    whole = table[table["part"] == "all"].iloc[0]
    parts = table[table["part"] != "all"]
    for column in ("plain", "gramian", "plain_bytes", "gramian_bytes"):
        assert parts[column].sum() == pytest.approx(whole[column])
    assert 0 < whole["floor_bytes"] < whole["gramian_bytes"]
    assert "matrix products" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"samples": (1,)}, {"samples": ()}, {"engine": "guess"}])
def test_wrong_settings(wrong):
    with pytest.raises(UserError):
        measure_parts_cost(PartsCostSettings(models=("mlp",), **wrong))
