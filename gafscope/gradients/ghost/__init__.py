"""Per-sample Gramians, and weighted updates, from one forward and one backward pass.

`trace.py` sees the calls that use parameters, `plan.py` and `places.py` find out where their
samples are, `check.py` makes sure of it; `run.py` is the pass itself, `calls/` knows what each
function contributes (`pieces.py`, `convolution.py`), and `ledger.py` turns contributions into
Gramians (`forms.py`) and weighted gradients. `joining.py` makes one pass of several.
"""

from gafscope.gradients.ghost.blocks import ghost_in_blocks
from gafscope.gradients.ghost.check import Coupled, Mismatch
from gafscope.gradients.ghost.places import Unsupported
from gafscope.gradients.ghost.products import PRECISIONS, Products

__all__ = ["PRECISIONS", "Coupled", "Mismatch", "Products", "Unsupported", "ghost_in_blocks"]
