"""Gradient agreement inside training loops that somebody else wrote.

`watch` captures each backward's own gradient by hooks; `Every`, `AtSteps`, `linear` and
`logarithmic` say when; `Record` is what a listener (a logger, a live view) is called with.
"""

from gafscope.instruments.listener import Listener, Record
from gafscope.instruments.schedule import AtSteps, Every, Schedule, linear, logarithmic
from gafscope.instruments.scope import Scope
from gafscope.instruments.watch import watch

__all__ = [
    "AtSteps",
    "Every",
    "Listener",
    "Record",
    "Schedule",
    "Scope",
    "linear",
    "logarithmic",
    "watch",
]
