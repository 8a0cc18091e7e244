"""Other libraries: right where they are installed, not needed where they are not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from gafscope.analyses.cost_cases import make_case
from gafscope.analyses.cost_peers import missing_peers, peer_gramian, peer_names
from gafscope.errors import UserError
from gafscope.gradients import gramian


@pytest.mark.parametrize("peer", peer_names())
@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_same_gramian_as_the_loop_each_time(peer, model):
    pytest.importorskip(peer)
    case = make_case(model, 4)
    call = peer_gramian(peer, case)
    expected = gramian(case.model, case.loss, case.batch, engine="loop").matrix
    for _ in range(2):  # nothing is left over from the first call
        torch.testing.assert_close(call().double(), expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in case.parameters)


def test_a_network_that_a_peer_refuses_names_the_parameter():
    pytest.importorskip("backpack")
    with pytest.raises(RuntimeError, match=r"no per-sample gradient of blocks\.0\.norm1"):
        peer_gramian("backpack", make_case("vit", 2))()


def test_missing_peers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torchjd" or None)
    assert missing_peers(["backpack", "torchjd", "opacus"]) == ("backpack", "opacus")
    with pytest.raises(UserError, match=r"Unknown peer 'opcus'\. Did you mean 'opacus'"):
        missing_peers(["opcus"])


def test_no_peer_is_imported_before_it_is_asked_for():
    code = (
        "import sys, gafscope, gafscope.cli.cost; "
        f"print([name for name in {list(peer_names())} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
