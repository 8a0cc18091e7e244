"""A worker process, which `Pool` starts: one line of orders on its standard input."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading

from gafscope.errors import UserError
from gafscope.sweep.recipe import recipe_from_json
from gafscope.sweep.worker import work


def main() -> int:
    """Work until the sweep is settled.

    Returns:
        The exit code: 0, 2 after a mistake, 130 when ended.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        work(recipe_from_json(order["recipe"]), order["worker"], order["number"])
    except UserError as error:
        print(f"gafscope: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_starter() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


sys.exit(main())
