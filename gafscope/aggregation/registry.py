"""Every rule by the name that the command line and settings files use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gafscope.aggregation.adaptive import AdaptiveGAF
from gafscope.aggregation.by_bucket import ByBucket
from gafscope.aggregation.by_layer import ByLayer
from gafscope.aggregation.calibrated import CalibratedGAF
from gafscope.aggregation.clique import CliqueGAF
from gafscope.aggregation.coordinate_median import CoordinateMedian
from gafscope.aggregation.direction_gate import DirectionGate
from gafscope.aggregation.ema_gate import EMAGate
from gafscope.aggregation.gaf import GAF
from gafscope.aggregation.geometric_median import GeometricMedian
from gafscope.aggregation.halving import HalvingGAF
from gafscope.aggregation.kinds import Rule
from gafscope.aggregation.kmeans import KMeansDirections
from gafscope.aggregation.krum import Krum, MultiKrum
from gafscope.aggregation.l2 import L2Threshold
from gafscope.aggregation.leave_one_out import LeaveOneOut
from gafscope.aggregation.mahalanobis import MahalanobisThreshold
from gafscope.aggregation.mean import Mean
from gafscope.aggregation.previous_gate import PreviousGate
from gafscope.aggregation.sand_mask import SANDMask
from gafscope.aggregation.shrinkage import InverseVariance
from gafscope.aggregation.sign_agreement import SignAgreement
from gafscope.aggregation.soft import SoftGAF
from gafscope.aggregation.top_m import TopM
from gafscope.aggregation.trimmed_mean import TrimmedMean
from gafscope.errors import UserError, unknown_name

RULES: dict[str, type] = {
    "mean": Mean,
    "gaf": GAF,
    "halving-gaf": HalvingGAF,
    "calibrated-gaf": CalibratedGAF,
    "adaptive-gaf": AdaptiveGAF,
    "clique-gaf": CliqueGAF,
    "leave-one-out": LeaveOneOut,
    "soft-gaf": SoftGAF,
    "inverse-variance": InverseVariance,
    "top-m": TopM,
    "k-means": KMeansDirections,
    "l2-threshold": L2Threshold,
    "mahalanobis-threshold": MahalanobisThreshold,
    "geometric-median": GeometricMedian,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "sign-agreement": SignAgreement,
    "sand-mask": SANDMask,
    "trimmed-mean": TrimmedMean,
    "coordinate-median": CoordinateMedian,
    "ema-gate": EMAGate,
    "previous-gate": PreviousGate,
    "direction-gate": DirectionGate,
    "by-layer": ByLayer,
    "by-bucket": ByBucket,
}


def rule_names() -> list[str]:
    """Give the names of all rules.

    Returns:
        Kebab-case names, the simplest rules first.
    """
    return list(RULES)


def build_rule(name: str, tau: float | None = None, **options: Any) -> Rule:
    """Make a rule from its name.

    Args:
        name: One of `rule_names()`.
        tau: Largest accepted cosine distance, for the rules that take one; others do without.
            None leaves the rule's own default.
        options: The rule's further arguments, as values or as text. Rules around another rule
            take its name: `rule="clique-gaf"`; scopes hold GAF where none is given, with the tau.

    Returns:
        The rule.

    Raises:
        UserError: If there is no such rule or option, a value is of the wrong type or out of
            range, or an option without default is missing.

    Example:
        >>> build_rule("gaf", tau=0.9, anchor="best")
        GAF(tau=0.9, anchor='best')
        >>> build_rule("top-m", tau=0.9, m="3")
        TopM(m=3)
        >>> build_rule("by-layer", tau=0.9, rule="leave-one-out")
        ByLayer(rule=LeaveOneOut(tau=0.9))
    """
    if name not in RULES:
        raise unknown_name("rule", name, RULES)
    rule = RULES[name]
    arguments = _arguments(rule)
    for option in options:
        if option not in arguments:
            raise _unknown_option(name, option, arguments)
    if "rule" in arguments:
        scope = "tau" not in arguments
        inner = options.get("rule", "gaf" if scope else None)
        if isinstance(inner, str):
            options["rule"] = build_rule(inner, tau if scope else None)
    if tau is not None and "tau" in arguments:
        options.setdefault("tau", tau)
    missing = [option for option in arguments if option not in options and arguments[option]]
    if missing:
        raise UserError(
            f"The rule '{name}' needs {', '.join(missing)}, which has no default; give it as an "
            "option of the rule."
        )
    hints = get_type_hints(rule.__init__)
    return rule(
        **{
            option: _converted(name, option, value, hints.get(option, Any))
            for option, value in options.items()
        }
    )


def _arguments(rule: type) -> dict[str, bool]:
    """Map what a rule's constructor takes to whether it must be given."""
    assert is_dataclass(rule), f"{rule.__name__} is in RULES but is no dataclass"
    return {argument.name: _required(argument) for argument in fields(rule) if argument.init}


def _required(argument: Field[Any]) -> bool:
    return argument.default is MISSING and argument.default_factory is MISSING


def _unknown_option(name: str, option: str, arguments: Mapping[str, bool]) -> UserError:
    if not arguments:
        return UserError(f"The rule '{name}' takes no options, but was given '{option}'.")
    return unknown_name(f"option of the rule '{name}'", option, arguments)


def _converted(name: str, option: str, value: Any, hint: Any) -> Any:
    """Read text as the number that a rule takes; leave alone what is of its type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if kind is Any or get_origin(kind) is Literal:
            return value
        if kind in (int, float, bool):
            try:
                return _number(value, kind)
            except (ValueError, TypeError):
                continue
        if isinstance(kind, type) and isinstance(value, kind):
            return value
    if not {int, float, bool, str}.intersection(kinds):
        return value
    expected = " or ".join(_KINDS.get(kind, str(kind)) for kind in kinds)
    raise UserError(
        f"The option {option} of the rule '{name}' must be {expected}, but is {value!r}."
    )


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a name",
    type(None): "nothing",
}


def _number(value: Any, kind: type) -> int | float | bool:
    if kind is bool:
        words = {"true": True, "yes": True, "false": False, "no": False}
        if isinstance(value, str):
            value = words.get(value.lower(), value)
        if not isinstance(value, bool):
            raise ValueError
        return value
    if isinstance(value, bool):
        raise ValueError
    if kind is int:
        if not isinstance(value, str) and int(value) != value:
            raise ValueError
        return int(value)
    return float(value)
