"""Rules as the command line names them."""

from __future__ import annotations

import pytest

from gafscope.aggregation import GAF, CliqueGAF
from gafscope.analyses.rule_specs import parse_rules
from gafscope.errors import UserError


def test_options_and_shared_threshold():
    best, clique = parse_rules(["gaf:anchor=best", "clique-gaf:tau=0.9"])
    assert best.build(0.8) == GAF(tau=0.8, anchor="best")
    assert best.build(None) == GAF(anchor="best")
    assert clique.build(0.8) == CliqueGAF(tau=0.9)
    assert [best.label, clique.label] == ["gaf anchor=best", "clique-gaf tau=0.9"]


def test_a_rule_named_twice_is_compared_once():
    assert [spec.name for spec in parse_rules(["krum", "mean", "krum"])] == ["krum", "mean"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], ["no rule", "--rules"]),
        (["gaf:anchor"], ["gaf:anchor=best", "'anchor'"]),
        (["gaf:tau=high"], ["tau", "'high'"]),
    ],
)
def test_mistakes_are_explained(texts, words):
    with pytest.raises(UserError) as error:
        parse_rules(texts)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_rule_is_refused_when_it_is_made():
    (spec,) = parse_rules(["gav"])
    with pytest.raises(UserError, match="'gaf'"):
        spec.build(None)
