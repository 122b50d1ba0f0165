"""How a network is spread over processes: the parallelism of a model lives beside it, not inside it."""

from onn_lightning.distributed.data_parallel import DataParallel
from onn_lightning.distributed.fsdp2_strategy import FSDP2Strategy
from onn_lightning.distributed.parallelize import Sharding, parallelize
from onn_lightning.distributed.sharded_strategy import ShardedStrategy

__all__ = ["DataParallel", "FSDP2Strategy", "ShardedStrategy", "Sharding", "parallelize"]
