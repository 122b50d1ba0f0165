"""Where the tasks of a preparation run: this machine, a Slurm cluster, a Ray cluster; one file each."""

from datamodules.prepare.executors.base import Executor, PreparationError, Stage
from datamodules.prepare.executors.local import LocalExecutor
from datamodules.prepare.executors.ray import RayExecutor
from datamodules.prepare.executors.slurm import SlurmExecutor

__all__ = ["Executor", "LocalExecutor", "PreparationError", "RayExecutor", "SlurmExecutor", "Stage"]
