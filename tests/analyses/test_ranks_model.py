"""The model of many ranks, against sums done by hand and against the message counts of rings."""

from __future__ import annotations

import pandas as pd
import pytest

from gafscope.analyses.ranks_model import DDP, FSDP, Network, agreed, plain, predict
from gafscope.cli import main
from gafscope.errors import UserError

# A backward so short that nothing hides behind it.
BARE = Network(latency=1e-3, bandwidth=1e6, operations=1e12, bytes_a_number=4, tokens=0)


def test_four_ranks_by_hand():
    # 1,000 numbers of 4 bytes: three quarters of them go to other ranks, there and back.
    base, own = plain(DDP, 4, 1000, BARE), agreed(DDP, 4, 1000, 1, BARE)
    assert base.bytes == 6000
    assert base.messages == 6
    assert base.seconds == pytest.approx(6e-3 + 6000 / 1e6)
    gramian = 2 * 8 * 16 * 3 / 4
    assert own.bytes == 6000 + gramian
    assert own.messages == 12
    assert own.seconds == pytest.approx(12e-3 + (6000 + gramian) / 1e6 + 2 * 16 * 250 / 1e12)
    assert own.memory == 4000 + 1000 + 8 * 16


def test_sharded_parameters_need_no_way_back():
    base, own = plain(FSDP, 4, 1000, BARE), agreed(FSDP, 4, 1000, 1, BARE)
    assert (base.bytes, base.messages) == (3000, 3)
    assert own.bytes == 3000 + 2 * 8 * 16 * 3 / 4


def test_a_long_backward_hides_what_may_travel_meanwhile():
    slow = Network(latency=0, bandwidth=1e6, operations=1e6, bytes_a_number=4, tokens=100)
    assert plain(DDP, 4, 1000, slow).seconds == 0
    # The update comes after the decision.
    assert agreed(DDP, 4, 1000, 1, slow).seconds >= 3000 / 1e6


def test_groups_keep_the_gramian_small():
    table = predict((4096,), (1e6,), 64, BARE)
    whole, grouped = (table[(table["kind"] == DDP) & (table["group"] == g)] for g in (1, 64))
    assert whole["agreed_GB"].item() - grouped["agreed_GB"].item() == pytest.approx(
        2 * 8 * (4096**2 - 64**2) * 4095 / 4096 / 1e9
    )
    with pytest.raises(UserError, match="divide the 6 ranks"):
        agreed(DDP, 6, 1000, 4, BARE)


def test_the_command_writes_table_and_figure(tmp_path, capsys):
    words = ["--ranks", "2", "128", "--numbers", "1e6", "--measured", "--output", str(tmp_path)]
    assert main(["cost", "--what", "ranks", *words]) == 0
    table = pd.read_csv(tmp_path / "ranks.csv")
    assert table["group"].tolist() == [1, 1, 2] * 2
    assert (tmp_path / "figures" / "ranks.png").stat().st_size > 0
    assert "FSDP2, 1e+06 numbers (predicted)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [(["--ranks", "1"], "2 or more"), (["--bandwidth", "0"], "bandwidth must be positive")],
)
def test_mistakes(words, found, capsys, tmp_path):
    rest = ["--measured", "--output", str(tmp_path)]
    assert main(["cost", "--what", "ranks", *words, *rest]) == 2
    assert found in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
