"""The same decision on every rank, at the price of a plain all-reduce.

`ShardExchange` turns rows that ranks hold into shards of all rows; `decide_on_shards` decides on
their Gramian. `gafscope.distributed.distribute.distribute` does both inside somebody's own DDP or
FSDP2 loop; it is not imported here, since FSDP takes most of a second.
"""

from gafscope.distributed.agree import (
    all_or_none,
    check_parameters,
    check_same,
    described_parameters,
)
from gafscope.distributed.collectives import sum_over_ranks
from gafscope.distributed.decide import Agreed, check_shardable, decide_on_shards, wants_layers
from gafscope.distributed.exchange import ShardExchange
from gafscope.distributed.order import Order, check_order, visiting_order
from gafscope.distributed.shards import Shards

__all__ = [
    "Agreed",
    "Order",
    "ShardExchange",
    "Shards",
    "all_or_none",
    "check_order",
    "check_parameters",
    "check_same",
    "check_shardable",
    "decide_on_shards",
    "described_parameters",
    "sum_over_ranks",
    "visiting_order",
    "wants_layers",
]
