"""`SlurmExecutor`: a Slurm cluster, one job array a stage.

Notable:
- All arrays are submitted at once, each depends on the one before (datatrove's `depends`); then the
  command waits, shows the progress and checks that every task of every stage left its mark.
- Where a stage fails, the command says what failed and cancels the jobs that would wait forever. Ctrl-C
  cancels all. If the command itself is killed, its jobs go on; while they do, `--resume` refuses to start
  a second set, and when they are done it goes on from where they came to.
- A job runs in the folder, with the Python and the import path of the command that submitted it. All
  nodes need corpus and output under the same paths.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

from datamodules.prepare.executors.base import (
    Executor,
    PreparationError,
    Progress,
    Stage,
    TaskFailure,
    raise_failure,
    refuse_incomplete,
)

_JOBS = "slurm_jobs.json"


class SlurmExecutor(Executor):
    """Runs tasks as Slurm job arrays, and waits for them.

    Args:
        partition: where the jobs run.
        time: limit of a job, e.g. "04:00:00".
        workers: jobs of an array that run at the same time; None: as many as the cluster allows.
        cpus_per_task: CPUs of a task.
        mem_per_cpu_gb: GB of memory for each of them.
        tasks_per_job: tasks that one job runs one after the other; more than 1 where jobs are slow to
            start.
        max_array_size: the cluster's `MaxArraySize` (`scontrol show config`).
        setup: shell command that a job runs first, e.g. "module load python"; one line.
        sbatch_args: further options of `sbatch`, e.g. {account: mine}.
        poll_seconds: how often the queue is looked at.
    """

    def __init__(
        self,
        partition: str,
        time: str = "04:00:00",
        workers: int | None = None,
        cpus_per_task: int = 1,
        mem_per_cpu_gb: int = 4,
        tasks_per_job: int = 1,
        max_array_size: int = 1001,
        setup: str = "",
        sbatch_args: Mapping[str, str] | None = None,
        poll_seconds: float = 5.0,
    ) -> None:
        super().__init__(workers)
        self.partition, self.time = partition, time
        self.cpus_per_task, self.mem_per_cpu_gb = cpus_per_task, mem_per_cpu_gb
        self.tasks_per_job, self.max_array_size = tasks_per_job, max_array_size
        self.setup, self.sbatch_args = setup, dict(sbatch_args or {})
        self.poll_seconds = poll_seconds

    def run(self, stages: Sequence[Stage], folder: Path, progress: Progress) -> None:
        if shutil.which("sbatch") is None:
            raise PreparationError(
                "SlurmExecutor: there is no `sbatch` here; run this on a login node of the cluster, or "
                "choose another executor"
            )
        logger.disable("datatrove")
        folder.mkdir(parents=True, exist_ok=True)
        self._refuse_second_set(folder / _JOBS)
        arrays: list[_SlurmStage] = []
        try:
            for stage in stages:
                arrays.append(self._array(stage, folder.resolve(), arrays[-1] if arrays else None))
                arrays[-1].launch_job()
                (folder / _JOBS).write_text(json.dumps([array.job_id for array in arrays]))
            for array in arrays:
                self._wait(array, progress)
        except subprocess.CalledProcessError as error:
            raise PreparationError(f"sbatch refused a job ({error}); see its message above") from error
        finally:  # what is still queued after a failure would wait forever, after a success nothing is
            jobs = [str(array.job_id) for array in arrays if array.job_id not in (None, -1)]
            subprocess.run(["scancel", "--quiet", *jobs], check=False, capture_output=True)

    def _array(self, stage: Stage, folder: Path, before: _SlurmStage | None) -> _SlurmStage:
        programs = shlex.quote(os.path.dirname(sys.executable))
        path = ":".join(shlex.quote(entry or os.getcwd()) for entry in sys.path)
        environment = f"PATH={programs}:$PATH PYTHONPATH={path} OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1"
        return _SlurmStage(
            stage,
            folder,
            tasks=stage.tasks,
            time=self.time,
            partition=self.partition,
            cpus_per_task=self.cpus_per_task,
            mem_per_cpu_gb=self.mem_per_cpu_gb,
            workers=self.workers or -1,
            job_name=f"onn-{stage.name}",
            qos=None,
            env_command=f"{self.setup or ':'}; export {environment}",
            sbatch_args=self.sbatch_args,
            max_array_size=self.max_array_size,
            tasks_per_job=self.tasks_per_job,
            depends=before,
        )

    def _wait(self, array: _SlurmStage, progress: Progress) -> None:
        """Until all tasks of a stage have their marks, or its jobs have ended without."""
        incomplete = set(array.get_incomplete_ranks())
        progress.begin(array.stage, sorted(set(range(array.tasks)) - incomplete))
        while incomplete:
            queued = str(array.job_id) in _queued()  # asked first: the marks of an ended job are there
            now = set(array.get_incomplete_ranks())
            for task in sorted(incomplete - now):
                progress.done(task)
            progress.refresh()
            failure = array.failure()
            if failure is not None:
                raise_failure(array.stage, failure, array.folder)
            if not queued:
                refuse_incomplete(array.stage, sorted(now), array.folder)
            incomplete = now
            if incomplete:
                time.sleep(self.poll_seconds)

    def _refuse_second_set(self, jobs: Path) -> None:
        if jobs.exists():
            alive = sorted(_queued() & {str(job) for job in json.loads(jobs.read_text())})
            if alive:
                raise PreparationError(
                    f"Slurm jobs {', '.join(alive)} of an earlier run of this preparation are still queued: "
                    f"wait for them, or cancel them (scancel {' '.join(alive)}), then run this again"
                )


class _SlurmStage(SlurmPipelineExecutor):  # type: ignore[misc]  # datatrove is not typed
    """datatrove's executor for one stage; a task that fails leaves its reason beside the marks."""

    def __init__(self, stage: Stage, folder: Path, **kwargs: Any) -> None:
        super().__init__(list(stage.steps), logging_dir=str(folder / stage.name), **kwargs)
        self.stage, self.folder = stage, folder

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "stage"}

    def __deepcopy__(self, memo: dict[int, Any]) -> _SlurmStage:
        clone = object.__new__(type(self))  # datatrove pickles a copy of itself
        clone.__dict__.update(self.__getstate__())
        return clone

    def launch_merge_stats(self) -> None:
        """No job of its own for that."""

    def launch_job(self) -> None:
        """Submit the array; failures of an earlier run are forgotten."""
        shutil.rmtree(self._failures, ignore_errors=True)
        super().launch_job()

    def failure(self) -> TaskFailure | None:
        """Of the first task that has failed."""
        for path in sorted(self._failures.glob("*.json")):
            return TaskFailure(**json.loads(path.read_text(encoding="utf-8")))
        return None

    @property
    def _failures(self) -> Path:
        return Path(self.logging_dir.resolve_paths("failures"))

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)
        except Exception as error:
            self._failures.mkdir(exist_ok=True)
            beside = self._failures / f"{rank:05d}.partial"
            beside.write_text(json.dumps(asdict(TaskFailure.of(rank, error))), encoding="utf-8")
            os.replace(beside, beside.with_suffix(".json"))
            raise


def _queued() -> set[str]:
    """Numbers of this user's arrays that wait or run.

    Raises:
        PreparationError: if Slurm does not answer.
    """
    answer = subprocess.run(["squeue", "--me", "--noheader", "--format=%F"], capture_output=True, text=True)
    if answer.returncode:
        raise PreparationError(f"squeue failed: {' '.join(answer.stderr.split())}; is Slurm running?")
    return set(answer.stdout.split())
