"""Small trials of one shape, trained together in one process."""

from gafscope.sweep.batched.eligible import batch_key, can_batch
from gafscope.sweep.batched.group import train_batched

__all__ = ["batch_key", "can_batch", "train_batched"]
