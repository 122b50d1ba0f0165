"""`LocalExecutor`: worker processes of this machine.

Notable:
- datatrove's own local executor waits in a `multiprocess.Pool`, which never notices that a worker was
  killed and waits for it forever. Here the standard library's `ProcessPoolExecutor` does, which notices at
  once; all else (marks, logs, statistics) stays datatrove's.
- A killed worker ends the run within seconds and is named: process, signal, task. So does a failed task.
  Ctrl-C ends all workers. None of them outlives the main process.
- Workers come out of a fork server, which has imported the pipeline once and has no threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import dill
from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger

from datamodules.prepare.executors import worker
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

WORKERS_LOCK = "workers.lock"
"""File in the folder of the stages that every worker locks (shared) while it lives."""

_POLL_SECONDS = 0.25
_END_SECONDS = 5.0
_PRELOADED = ["datamodules.prepare.pipeline"]


class LocalExecutor(Executor):
    """Runs tasks in processes of this machine.

    Args:
        workers: how many processes; None: one a CPU.
    """

    def run(self, stages: Sequence[Stage], folder: Path, progress: Progress) -> None:
        logger.disable("datatrove")  # in this process; the workers log into files
        workers = self.workers or _cpus()
        _start_fork_server()
        for stage in stages:
            _LocalStage(stage, folder, workers, progress).run()


class _LocalStage(LocalPipelineExecutor):  # type: ignore[misc]  # datatrove is not typed
    """datatrove's executor for one stage, with another way to launch its ranks."""

    def __init__(self, stage: Stage, folder: Path, workers: int, progress: Progress) -> None:
        super().__init__(
            list(stage.steps), tasks=stage.tasks, workers=workers, logging_dir=str(folder / stage.name)
        )
        self._stage, self._folder, self._progress = stage, folder, progress

    def __getstate__(self) -> dict[str, Any]:
        of_main_process = {"_progress", "_stage"}  # a worker needs the pipeline alone
        return {key: value for key, value in self.__dict__.items() if key not in of_main_process}

    def run(self) -> None:
        """Launch all ranks that are not complete, and wait for them."""
        ranks = self.get_incomplete_ranks()
        self._progress.begin(self._stage, sorted(set(range(self.tasks)) - set(ranks)))
        if not ranks:
            return
        log = self._folder / self._stage.name / "workers.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        context = _RememberingContext()
        setting = worker.WorkerSetting(
            executor=dill.dumps(self),
            owners=context.RawArray("l", self.tasks),
            log=log,
            lock=self._folder / WORKERS_LOCK,
        )
        pool = ProcessPoolExecutor(
            min(self.workers, len(ranks)), mp_context=context, initializer=worker.start, initargs=(setting,)
        )
        try:
            self._launch(ranks, pool)
            pool.shutdown()
        except BrokenProcessPool as error:
            pool.shutdown()  # waits, so that every exit code is known
            raise PreparationError(self._name_dead(context.processes, setting)) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(context.processes)
        refuse_incomplete(self._stage, self.get_incomplete_ranks(), self._folder)

    def _launch(self, ranks: list[int], pool: ProcessPoolExecutor) -> None:
        """Keep all workers busy; the pool is told of no more tasks than it needs for that."""
        waiting = iter(ranks)
        running: dict[Future[TaskFailure | None], int] = {}
        while True:
            while len(running) < 2 * self.workers and (rank := next(waiting, None)) is not None:
                running[pool.submit(worker.run_task, rank)] = rank
            if not running:
                return
            for future in wait(running, _POLL_SECONDS, FIRST_COMPLETED).done:
                failure = future.result()
                if failure is not None:
                    raise_failure(self._stage, failure, self._folder)
                self._progress.done(running.pop(future))
            self._progress.refresh()

    def _name_dead(self, processes: Sequence[ForkServerProcess], setting: worker.WorkerSetting) -> str:
        # the pool itself ends the workers that are left with SIGTERM
        ended = [process for process in processes if process.exitcode not in (None, 0)]
        dead = [process for process in ended if process.exitcode != -signal.SIGTERM] or ended
        completed = set(range(self.tasks)) - set(self.get_incomplete_ranks())
        named = []
        for process in dead:
            code = process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            tasks = [task for task, owner in enumerate(setting.owners) if owner == process.pid]
            at = [described(self._stage, task) for task in tasks if task not in completed]
            while_working = f" while working on {', '.join(at)}" if at else ""
            named.append(f"worker {process.pid} of stage {self._stage.name} {how}{while_working}")
        by_kernel = any(process.exitcode == -signal.SIGKILL for process in dead)
        hint = " (if memory ran out: fewer --workers need less)" if by_kernel else f" (see {setting.log})"
        return f"{'; '.join(named) or 'a worker could not be started'}{hint}; {RESUME}"


class _RememberingContext(ForkServerContext):
    """Keeps the processes that a pool starts, which is how their exit codes can be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[ForkServerProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> ForkServerProcess:  # type: ignore[override]
        process = ForkServerProcess(*args, **kwargs)
        self.processes.append(process)
        return process


def _cpus() -> int:
    """CPUs that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_fork_server() -> None:
    """Start it deaf to Ctrl-C, which its children inherit; it is there for all stages."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    if threading.current_thread() is not threading.main_thread():
        return forkserver.ensure_running()  # only the main thread may change what a signal does
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _end(processes: Sequence[ForkServerProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join(_END_SECONDS)
