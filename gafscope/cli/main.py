"""Which command does what."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from gafscope import __version__
from gafscope.cli.memory import keep_memory
from gafscope.distributed.launch import Told, launch, launched
from gafscope.errors import UserError, unknown_name

# As a shell gives it, and as a run ends on SIGTERM.
_TERMINATED = 128 + signal.SIGTERM

_HELP = """\
usage: python -m gafscope COMMAND [settings]

See, use and check gradient agreement in PyTorch models.

commands:
  demo         GAF against averaging and its control on noisy digits, in under a minute
  train        train one model with a rule, and record every decision
  diagnose     one page of answers about your own model's gradients, or a built-in one's
  analyses     list the analyses; `analyses NAME` runs one, `analyses --all` all of them
  cost         measure what a step costs beside plain averaging
  report       one HTML page about a run, or about several side by side
  sweep        train over a grid or a search of settings and seeds, by many workers

analyses:
{analyses}

`python -m gafscope COMMAND --help` explains a command's settings.
Everything is written under ./runs/ unless --run-dir says otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after `python -m gafscope`; those of the process when None.

    Returns:
        The exit code: 0, or 2 after a mistake, which is explained in one message, or 130 after
        Ctrl-C and 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    keep_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"gafscope: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _ended("interrupted", 130)
    except SystemExit as end:
        if end.code != _TERMINATED or isinstance(end, Told):
            raise
        return _ended("terminated", _TERMINATED)


def _ended(how: str, code: int) -> int:
    print(
        f"\ngafscope: {how}; what was done is kept. The same command goes on from there.",
        file=sys.stderr,
    )
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"gafscope {__version__}")
        return 0
    if launched() and words[0] != "train":
        with launch():
            raise UserError(
                "torchrun has started several processes, which only 'train' shares out, but the "
                f"command is '{words[0]}'; run it without torchrun."
            )
    _commands(words[0])(words[1:])
    return 0


def _commands(name: str) -> Callable[[Sequence[str]], object]:
    """Find a command; the parts that it needs are imported only now."""
    from gafscope.analyses import ANALYSES
    from gafscope.cli.analyses import list_or_run, run_analysis
    from gafscope.cli.cost import run_cost
    from gafscope.cli.diagnose import run_diagnose
    from gafscope.cli.report import run_report
    from gafscope.cli.sweep import run_sweep_command
    from gafscope.cli.train import run_train

    commands: dict[str, Callable[[Sequence[str]], object]] = {
        "train": run_train,
        "diagnose": run_diagnose,
        "analyses": list_or_run,
        "cost": run_cost,
        "report": run_report,
        "sweep": run_sweep_command,
    }
    for analysis in ANALYSES.values():
        commands[analysis.name] = lambda rest, analysis=analysis: run_analysis(analysis, rest)
    if name not in commands:
        raise unknown_name("command", name, commands)
    return commands[name]


def _help() -> str:
    from gafscope.analyses import ANALYSES

    width = max(map(len, ANALYSES)) + 2
    lines = [f"  {a.name:<{width}}{a.question}" for a in ANALYSES.values() if a.name != "demo"]
    return _HELP.format(analyses="\n".join(lines))
