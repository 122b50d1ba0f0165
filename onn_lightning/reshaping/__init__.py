"""A trained network in another shape: grown without a change of its function, or pruned.

Torch only (no Lightning); works on checkpoints as plain data, so that a run is rebuilt from the result.
"""

from onn_lightning.reshaping.plan import Reshaping

__all__ = ["Reshaping"]
