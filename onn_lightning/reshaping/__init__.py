"""A trained network in another shape: grown without a change of its function, or pruned.

Torch only (no Lightning); works on checkpoints as plain data, so that a run is rebuilt from the result.
"""

from onn_lightning.reshaping.checkpoint import reshape_checkpoint
from onn_lightning.reshaping.plan import Reshaping
from onn_lightning.reshaping.plans import add_blocks, extend_tables, keep_neurons, widen

__all__ = ["Reshaping", "add_blocks", "extend_tables", "keep_neurons", "reshape_checkpoint", "widen"]
