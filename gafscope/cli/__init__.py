"""The command line, `python -m gafscope <command>`."""

from gafscope.cli.main import main

__all__ = ["main"]
