"""`CompileBlocks`: torch.compile for every block of the trunk, in place, as a line of the config.

Notable:
- `nn.Module.compile` wraps the call, not the module: parameters keep their names, so checkpoints of compiled
  and of plain runs are the same, and a run may be resumed either way.
- Blocks of one shape share one graph, however many there are: what is compiled is a block's forward and
  backward while training and its forward alone while validating. Rows have a fixed length and the loss's
  weights are tensors, so nothing is compiled again later. Embedders and heads, whose numbers of tokens change
  with every batch, stay as they are.
- It comes before the strategy wraps anything (Lightning's `setup` precedes `configure_model`), which is the
  order that FSDP2 asks for. A network that was reshaped in mid-run is built and compiled anew.
- Whether this machine can compile at all is tried on something small first: a missing C++ compiler is told
  then, in one line, not in the middle of the first step.
- `GradientCheckpointing` does not go with it, and says why: a compiled block chooses itself which results it
  keeps for backward and which it computes once more.
- Answers are generated uncompiled (`generation/session.py`): there the shapes change with every token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from onn_lightning.module import OmniModule


class CompileBlocks(Callback):
    """Compiles the blocks of the trunk for training, and for the validation within it.

    Args:
        mode: torch.compile's own, e.g. "max-autotune-no-cudagraphs", which looks longer for faster kernels;
            None: its default.
        backend: torch.compile's own; "aot_eager" traces as "inductor" does but makes no kernels of it, which
            tells whose fault it is when something is wrong.
    """

    def __init__(self, mode: str | None = None, backend: str = "inductor") -> None:
        self.mode, self.backend = mode, backend
        self._splits_for_ddp: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile; the first step of training makes the kernels.

        Raises:
            MisconfigurationException: if nothing can be compiled on this machine.
        """
        if stage != "fit":
            return
        assert isinstance(pl_module, OmniModule)
        self._try(trainer.strategy.root_device)
        # Under DDP torch would cut every graph along DDP's buckets, for which it refuses graphs with an
        # autograd.Function. Blocks are small enough for gradients to travel while others are still made.
        self._splits_for_ddp = torch._dynamo.config.optimize_ddp
        torch._dynamo.config.optimize_ddp = False
        for block in pl_module.trunk.blocks:
            block.compile(mode=self.mode, backend=self.backend)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave torch's settings as they were."""
        if self._splits_for_ddp is not None:
            torch._dynamo.config.optimize_ddp = self._splits_for_ddp
            self._splits_for_ddp = None

    def _try(self, device: torch.device) -> None:
        try:
            torch.compile(_double, mode=self.mode, backend=self.backend)(torch.ones(2, device=device))
        except Exception as error:  # whatever it is, it would come again in the first step
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise MisconfigurationException(
                f"CompileBlocks: torch.compile with the backend '{self.backend}' does not work on "
                f"{device.type} here ({reason}). On a CPU it needs a C++ compiler (g++, or the one named in "
                "CXX), on a GPU Triton and a C compiler: install them, or leave CompileBlocks out of "
                "trainer.callbacks"
            ) from error


def _double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
