"""Putting the SLURM job of a run into the queue again, so that the same command goes on from its checkpoint.

Notable: only after a signal that was ordered with `#SBATCH --signal`, shortly before the job's time limit. On
pre-emption SLURM itself requeues a job of `#SBATCH --requeue`.
"""

from __future__ import annotations

import logging
import os
import subprocess

from lightning.pytorch.utilities.rank_zero import rank_zero_only

_log = logging.getLogger("lightning.pytorch")


@rank_zero_only
def requeue_job() -> None:
    """`scontrol requeue` for this job, or this element of a job array; says so where that fails."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        _log.warning("job %s was not put into the queue again (%s): submit it once more", job, reason.strip())
    else:
        _log.info("job %s is in the queue again", job)
