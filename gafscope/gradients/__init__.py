"""Micro-gradients of any model: one row a microbatch or a sample, and their Gramian.

`loss.py` says what a loss is, `types.py` what comes back, `measure.py` holds the two public
functions and the automatic choice between the engines, one engine a file. What every loop over
microbatches needs besides: `running.py` folds their gradients, `batch_norm.py` keeps the running
statistics of the accepted ones.
"""

from gafscope.gradients.loss import Loss, Supervised, supervised
from gafscope.gradients.measure import gramian, microbatch_gradients
from gafscope.gradients.types import GradientRows, Gramian

__all__ = [
    "GradientRows",
    "Gramian",
    "Loss",
    "Supervised",
    "gramian",
    "microbatch_gradients",
    "supervised",
]
