"""Rules as a list on the command line: a name, and options after a colon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from gafscope.aggregation import Rule, build_rule
from gafscope.errors import UserError
from gafscope.trainer import TrainSettings


@final
@dataclass(frozen=True)
class RuleSpec:
    """A rule and its options.

    Attributes:
        name: One of `rule_names()`.
        tau: Its own threshold, None for the one that all share.
        options: Option name -> text.
    """

    name: str
    tau: float | None
    options: Mapping[str, str]

    @property
    def label(self) -> str:
        """What tables and figures call it, e.g. `gaf anchor=best`."""
        tau = {} if self.tau is None else {"tau": f"{self.tau:g}"}
        return " ".join([self.name, *(f"{k}={v}" for k, v in {**self.options, **tau}.items())])

    def build(self, tau: float | None) -> Rule:
        """Make the rule.

        Args:
            tau: The threshold that all share; None for the rule's default.

        Raises:
            UserError: If there is no such rule or option.
        """
        return build_rule(self.name, tau if self.tau is None else self.tau, **self.options)

    def settings(self, base: TrainSettings) -> TrainSettings:
        """Give the settings that train with this rule.

        Args:
            base: All other settings, and the threshold that all share.
        """
        tau = base.tau if self.tau is None else self.tau
        return replace(base, rule=self.name, tau=tau, rule_options=dict(self.options) or None)


def parse_rules(texts: Sequence[str]) -> list[RuleSpec]:
    """Read rules, each once.

    Args:
        texts: Each `NAME` or `NAME:OPTION=VALUE,OPTION=VALUE`.

    Returns:
        The rules in the order given.

    Raises:
        UserError: If an option has no value, tau is no number, or there is no rule at all.

    Example:
        >>> [spec.label for spec in parse_rules(["krum", "gaf:anchor=best,tau=0.8", "krum"])]
        ['krum', 'gaf anchor=best tau=0.8']
    """
    specs = [_parse(text) for text in dict.fromkeys(texts)]
    if not specs:
        raise UserError("There is no rule to compare; name one or more, e.g. --rules gaf krum.")
    return specs


def _parse(text: str) -> RuleSpec:
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UserError(
                f"A rule's options are OPTION=VALUE after a colon, as in gaf:anchor=best, but "
                f"'{text}' has '{part}'."
            )
        options[key] = value
    text_tau = options.pop("tau", None)
    try:
        tau = None if text_tau is None else float(text_tau)
    except ValueError as error:
        raise UserError(
            f"tau must be a number in [0, 2], but '{text}' has '{text_tau}'."
        ) from error
    return RuleSpec(name, tau, options)
