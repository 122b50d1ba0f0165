"""What a training step keeps for backward, chosen in the config.

Notable:
- It only sets a switch of the trunk, before the network is sharded or compiled: names of parameters and
  checkpoints stay as they are, and a run may be resumed with another mode.
- The trunk decides which neurons fire once, outside of what is recomputed: see `onn_lightning.nn.recompute`.
- Compiled blocks are refused: torch.compile makes other graphs of the first pass, which decides, and of the
  recomputation, which is told, and torch's checkpoint takes the one for a broken copy of the other; products
  within a compiled block can not be told apart, so that "selective" would recompute them and their gates.
"""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from onn_lightning.callbacks.compile_blocks import CompileBlocks
from onn_lightning.module import OmniModule
from onn_lightning.nn.recompute import Checkpointing


class GradientCheckpointing(Callback):
    """Trade memory for time in training.

    Args:
        mode: "block" keeps a block's input and which neurons fired, and computes the rest once more in
            backward; "selective" keeps the results of products and attention, and computes once more what
            is cheap; "none" keeps everything.
    """

    def __init__(self, mode: Checkpointing = "block") -> None:
        self.mode: Checkpointing = mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the trunk's mode.

        Raises:
            MisconfigurationException: together with `CompileBlocks`.
        """
        assert isinstance(pl_module, OmniModule)
        compiled = any(isinstance(callback, CompileBlocks) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if compiled and self.mode != "none":
            raise MisconfigurationException(
                f"GradientCheckpointing(mode='{self.mode}') and CompileBlocks do not go together: leave "
                "one of them out of trainer.callbacks"
            )
        pl_module.trunk.checkpointing = self.mode
