"""`RayExecutor`: a Ray cluster, or a Ray of this machine where there is none (extra `ray`).

Notable:
- Every task is a Ray task of its own. datatrove's Ray executor puts them into a pool inside an actor, which
  waits forever for a killed process and logs a failed task as success; what stays datatrove's are marks,
  logs and statistics.
- Ray starts a task again whose process or node died, which is safe: its result is the same. A failed task
  ends the run.
- All nodes need this package, and the corpus and the output under the same paths.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dill
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

from datamodules.prepare.executors.base import (
    RESUME,
    Executor,
    PreparationError,
    Progress,
    Stage,
    TaskFailure,
    described,
    raise_failure,
    refuse_incomplete,
)
from datamodules.prepare.executors.worker import compute_with_one_thread

_POLL_SECONDS = 0.25


class RayExecutor(Executor):
    """Runs tasks on Ray.

    Args:
        address: of a running cluster ("auto": the one of this machine); None: that of the environment
            (RAY_ADDRESS), else a Ray of this machine is started for the run.
        workers: tasks at the same time; None: as many as there is room for.
        cpus_per_task: CPUs that a task reserves.
        num_cpus: CPUs of the Ray that is started where there is none; None: all.
    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        cpus_per_task: float = 1,
        num_cpus: int | None = None,
    ) -> None:
        super().__init__(workers)
        if cpus_per_task <= 0:
            raise ValueError(f"`cpus_per_task` must be positive, got {cpus_per_task}")
        self.address, self.cpus_per_task, self.num_cpus = address, cpus_per_task, num_cpus

    def run(self, stages: Sequence[Stage], folder: Path, progress: Progress) -> None:
        try:
            import ray
        except ImportError as error:
            raise PreparationError(
                "RayExecutor needs Ray: pip install 'onn-lightning[ray]', or choose another executor"
            ) from error
        logger.disable("datatrove")
        started = not ray.is_initialized()
        if started:
            ray.init(
                address=self.address,
                num_cpus=self.num_cpus,
                include_dashboard=False,
                log_to_driver=False,  # what tasks print is in their logs
                logging_level=logging.ERROR,
            )
        try:
            available = int(ray.cluster_resources().get("CPU", 0) // self.cpus_per_task)
            if not available:
                raise PreparationError(
                    f"the Ray cluster has no {self.cpus_per_task} CPUs for a task: add nodes, or lower "
                    "`cpus_per_task`"
                )
            for stage in stages:
                _RayStage(stage, folder, self.workers or available, self.cpus_per_task, progress).run()
        finally:
            if started:
                ray.shutdown()


class _RayStage(RayPipelineExecutor):  # type: ignore[misc]  # datatrove is not typed
    """datatrove's executor for one stage, with another way to launch its ranks."""

    def __init__(
        self, stage: Stage, folder: Path, workers: int, cpus_per_task: float, progress: Progress
    ) -> None:
        super().__init__(
            list(stage.steps),
            tasks=stage.tasks,
            workers=workers,
            logging_dir=str(folder / stage.name),
            cpus_per_task=cpus_per_task,
        )
        self._stage, self._folder, self._progress = stage, folder, progress

    def __getstate__(self) -> dict[str, Any]:
        of_main_process = {"_progress", "_stage"}  # a worker needs the pipeline alone
        return {key: value for key, value in self.__dict__.items() if key not in of_main_process}

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        # datatrove's Ray executor writes logs into one folder below /tmp first, whoever's runs share it
        return PipelineExecutor._run_for_rank(self, rank, local_rank, node_rank)

    def run(self) -> None:
        """Launch all ranks that are not complete, and wait for them."""
        import ray

        ranks = self.get_incomplete_ranks()
        self._progress.begin(self._stage, sorted(set(range(self.tasks)) - set(ranks)))
        remote = ray.remote(num_cpus=self.cpus_per_task)(_run_task)
        executor = ray.put(dill.dumps(self))
        waiting = iter(ranks)
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < self.workers and (rank := next(waiting, None)) is not None:
                    running[remote.remote(executor, rank, os.getcwd(), list(sys.path))] = rank
                if not running:
                    break
                done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
                for reference in done:
                    self._settle(reference, running.pop(reference))
                self._progress.refresh()
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
        refuse_incomplete(self._stage, self.get_incomplete_ranks(), self._folder)

    def _settle(self, reference: Any, rank: int) -> None:
        import ray

        try:
            failure: TaskFailure | None = ray.get(reference)
        except ray.exceptions.RayError as error:  # its process or node died again and again
            reason = str(error).strip().splitlines()[0]
            where = f"stage {self._stage.name}, {described(self._stage, rank)}"
            raise PreparationError(f"{where}: Ray gave it up ({reason}); {RESUME}") from error
        if failure is not None:
            raise_failure(self._stage, failure, self._folder)
        self._progress.done(rank)


def _run_task(executor: bytes, rank: int, working_folder: str, import_path: list[str]) -> TaskFailure | None:
    """Run one task in a process of Ray, where paths and imports mean what they mean in the main process."""
    os.chdir(working_folder)
    sys.path.extend(entry for entry in import_path if entry not in sys.path)
    compute_with_one_thread()
    try:
        dill.loads(executor)._run_for_rank(
            rank, local_rank=1
        )  # other than 0: log lines go to the log file alone
    except Exception as error:
        return TaskFailure.of(rank, error)
    return None
