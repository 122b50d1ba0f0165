"""`GoesOnFrom`: training stopped, and goes on at once from a checkpoint that was made for it.

Notable: raised in all processes of a run between the same two steps. Whoever builds the run catches it and
builds everything anew (`onn fit`; a script: `onn_lightning.reshaping.rebuild.fit_growing`).
"""

from __future__ import annotations

from pathlib import Path


class GoesOnFrom(Exception):
    """Training stopped between two steps, to go on from another checkpoint than its own.

    Args:
        checkpoint: the file to go on from, complete.
        what: what was done, one line.
    """

    def __init__(self, checkpoint: Path, what: str) -> None:
        super().__init__(
            f"{what}; training goes on from {checkpoint} with everything built anew: `onn fit` does so by "
            "itself, a script by onn_lightning.reshaping.rebuild.fit_growing"
        )
        self.checkpoint = checkpoint
        self.what = what


class RolledBack(GoesOnFrom):
    """Training went back to an earlier state, and goes on with the data that is still to come."""
