"""A run's folder: written while training goes on, read back whenever it is asked for.

`RunWriter` writes, `load_run` reads, `Run` is what was read, `replay` lets a rule decide on what
was recorded, and `atomic_write` is how every file that must never be half written gets onto the
disk. The folder holds::

    config.yaml        settings
    provenance.json    versions, git commit, seed, device, command, start time
    scalars.jsonl      one JSON object a step
    matrices/          Gramians, one Parquet part a flush
    summary.json       final numbers
    checkpoint.pt      everything to go on from; checkpoint-STEP.pt are kept older ones
    best.pt            the weights that validated best, with their step
"""

from gafscope.records.files import atomic_write
from gafscope.records.replay import replay
from gafscope.records.run import Run, load_run
from gafscope.records.writer import RunWriter

__all__ = ["Run", "RunWriter", "atomic_write", "load_run", "replay"]
