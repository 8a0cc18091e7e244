from __future__ import annotations

import re
from dataclasses import MISSING, fields

import pytest

from gafscope.aggregation import (
    GAF,
    RULES,
    KMeansDirections,
    L2Threshold,
    MahalanobisThreshold,
    Mean,
    MultiKrum,
    SoftGAF,
    TopM,
    build_rule,
    rule_names,
)
from gafscope.errors import UserError

NEEDED = {"top-m": {"m": 2}, "l2-threshold": {"threshold": 1.2}}
NEEDED["mahalanobis-threshold"] = {"threshold": 2.0}


def test_names_are_kebab_case():
    assert rule_names() == list(RULES)
    assert {"mean", "gaf", "halving-gaf"} <= set(RULES)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in RULES)


@pytest.mark.parametrize("name", ["mean", "gaf", "clique-gaf", "soft-gaf", "krum", *NEEDED])
def test_a_rule_by_name_takes_tau_where_it_has_one(name):
    rule = build_rule(name, tau=0.8, **NEEDED.get(name, {}))
    assert type(rule) is RULES[name]
    assert getattr(rule, "tau", 0.8) == 0.8


def test_without_tau_the_default_stays():
    assert build_rule("gaf") == GAF()
    assert build_rule("gaf", tau=0.9, anchor="best", seed=3) == GAF(0.9, "best", 3)
    assert build_rule("mean", tau=0.9) == Mean()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("top-m", {"m": "3"}, TopM(3)),
        ("top-m", {"m": 3.0}, TopM(3)),
        ("soft-gaf", {"temperature": "1e-2", "tau": 0.9}, SoftGAF(0.9, 0.01)),
        ("k-means", {"clusters": "3", "use": "means"}, KMeansDirections(3, "means")),
        ("multi-krum", {"byzantine": "2", "m": 4}, MultiKrum(2, 4)),
        ("l2-threshold", {"threshold": 2}, L2Threshold(2.0)),
        (
            "mahalanobis-threshold",
            {"threshold": "2", "shrinkage": "0.3"},
            MahalanobisThreshold(2.0, 0.3),
        ),
        (
            "mahalanobis-threshold",
            {"threshold": "2", "shrinkage": "ledoit-wolf"},
            MahalanobisThreshold(2.0),
        ),
    ],
)
def test_text_becomes_what_the_rule_takes(name, options, expected):
    rule = build_rule(name, **options)
    assert rule == expected
    for argument in fields(rule):
        assert type(getattr(rule, argument.name)) is type(getattr(expected, argument.name))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gff", {}, "Unknown rule 'gff'. Did you mean 'gaf'"),
        ("gaf", {"ancor": "best"}, "Unknown option of the rule 'gaf' 'ancor'.*'anchor'"),
        ("mean", {"m": 1}, "The rule 'mean' takes no options, but was given 'm'"),
        ("top-m", {}, "The rule 'top-m' needs m, which has no default"),
        ("top-m", {"m": "many"}, "option m of the rule 'top-m' must be a whole number.*'many'"),
        ("top-m", {"m": 2.5}, "option m of the rule 'top-m' must be a whole number, but is 2.5"),
        ("soft-gaf", {"temperature": "x"}, "option temperature .*must be a number, but is 'x'"),
        ("gaf", {"tau": True}, "option tau of the rule 'gaf' must be a number, but is True"),
        ("gaf", {"anchor": "middle"}, "Unknown anchor 'middle'"),
        ("gaf", {"tau": 3}, "tau is a cosine distance"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        build_rule(name, **options)


def test_every_rule_can_be_built_from_what_it_must_be_given():
    for name, rule in RULES.items():
        needed = [
            argument.name
            for argument in fields(rule)
            if argument.init and argument.default is argument.default_factory is MISSING
        ]
        if set(needed) <= set(NEEDED.get(name, {})):
            assert type(build_rule(name, tau=0.9, **NEEDED.get(name, {}))) is rule


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("by-layer", {}, "ByLayer(rule=GAF(tau=0.8))"),
        ("by-bucket", {"bytes": "100"}, "ByBucket(rule=GAF(tau=0.8), bytes=100)"),
        ("by-layer", {"rule": "mean"}, "ByLayer(rule=Mean())"),
        # A gate's tau is its own.
        ("previous-gate", {}, "PreviousGate(tau=0.8, rule=Mean())"),
        ("previous-gate", {"rule": "gaf"}, "PreviousGate(tau=0.8, rule=GAF(tau=0.97))"),
        ("ema-gate", {"rule": "sign-agreement", "decay": "0.5"}, "EMAGate(rule=SignAgreement("),
        ("trimmed-mean", {"trim": "2"}, "TrimmedMean(trim=2)"),
    ],
)
def test_rules_around_others_and_rules_on_rows(name, options, expected):
    assert repr(build_rule(name, tau=0.8, **options)).startswith(expected)


def test_a_rule_around_an_unknown_one_is_refused():
    with pytest.raises(UserError, match="Unknown rule 'gff'"):
        build_rule("by-layer", rule="gff")
