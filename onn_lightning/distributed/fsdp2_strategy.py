"""`FSDP2Strategy`: fully sharded data parallel training, with the sizes of its mesh said in words.

Notable:
- `OmniModule.configure_model` shards the network (`parallelize.py`), after the callbacks' `setup` and before
  the optimizer is made.
- Ranks of one tensor-parallel group read the same part of the batch; the mesh is [data, tensor], so that they
  are neighbours on one node.
- `onn fit` builds the model on the meta device under this strategy, a script does so by
  `with trainer.init_module(empty_init=True)`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from onn_lightning.distributed.parallelize import Sharding
from onn_lightning.distributed.sharded_strategy import ShardedStrategy


class FSDP2Strategy(ShardedStrategy):
    """Shards weights, gradients and optimizer state over the ranks of a data-parallel group.

    Args:
        data_parallel_size: ranks that read different parts of a batch and share the weights among them; times
            `tensor_parallel_size` it is the number of all ranks (nodes x devices).
        tensor_parallel_size: ranks that share the neurons of every layer and read the same part of a batch.
        reshard_after_forward: free a block's gathered weights after its forward pass and gather them again in
            the backward pass; False: less traffic, more memory.
        gather_dtype: type in which a block's weights are gathered. "bfloat16" halves the traffic, needs
            `precision: bf16-mixed`, and rounds means and uncertainties before keys are made of them.
        save_distributed_checkpoint: every rank writes its shards into a folder; False: one file.
        process_group_backend: None: nccl on GPUs, gloo on CPUs.
        timeout_minutes: how long a rank waits for the others before it gives up.
    Raises:
        ValueError: for a size below 1.
    """

    def __init__(
        self,
        data_parallel_size: int,
        tensor_parallel_size: int = 1,
        reshard_after_forward: bool = True,
        gather_dtype: Literal["bfloat16"] | None = None,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout_minutes: float = 30,
    ) -> None:
        if min(data_parallel_size, tensor_parallel_size) < 1:
            raise ValueError(
                f"FSDP2Strategy: data_parallel_size is {data_parallel_size} and tensor_parallel_size "
                f"{tensor_parallel_size}; both must be at least 1"
            )
        super().__init__(
            data_parallel_size,
            tensor_parallel_size,
            save_distributed_checkpoint,
            process_group_backend,
            timedelta(minutes=timeout_minutes),
        )
        self.sharding = Sharding(reshard_after_forward, torch.bfloat16 if gather_dtype else None)

    def setup_environment(self) -> None:
        """Start the processes' group and lay out the mesh.

        Raises:
            MisconfigurationException: if the sizes do not make up the ranks, or `gather_dtype` is not that of
                the products.
        """
        ranks = self.num_nodes * self.num_processes
        data, tensor = self._data_parallel_size, self._tensor_parallel_size
        assert isinstance(data, int) and isinstance(tensor, int)
        if data * tensor != ranks:
            raise MisconfigurationException(
                f"FSDP2Strategy: data_parallel_size {data} x tensor_parallel_size {tensor} is "
                f"{data * tensor}, the trainer has {ranks} ranks (num_nodes {self.num_nodes} x devices "
                f"{self.num_processes}): set trainer.strategy.init_args.data_parallel_size to "
                f"{max(1, ranks // tensor)}, or change those"
            )
        if self.sharding.gather_dtype is not None and self.precision_plugin.precision != "bf16-mixed":
            raise MisconfigurationException(
                "FSDP2Strategy: gather_dtype bfloat16 gathers weights for products in bfloat16: set "
                "trainer.precision to bf16-mixed, or leave gather_dtype out"
            )
        super().setup_environment()
