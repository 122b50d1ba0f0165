"""A worker process of this machine: what it does before, during and after its tasks.

Notable:
- It ignores Ctrl-C, which the terminal sends to all processes of a run: the main process decides. It ends
  with the main process, however that ended: a thread waits for its death.
- All that it would print, datatrove's log lines and the stack of a crash in a C library included, goes
  into a file; the terminal belongs to the main process.
- It shares a lock for as long as it lives, so that a resumed run can wait until the last worker of a
  killed one is gone.
- It computes with one thread.
"""

from __future__ import annotations

import copy
import faulthandler
import fcntl
import os
import signal
import sys
import threading
from ctypes import Array, c_long
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import dill

from datamodules.prepare.executors.base import TaskFailure

_AFTER_ORPHANED = 1  # exit code, seen by nobody


@dataclass(frozen=True)
class WorkerSetting:
    """What a worker is told at its start.

    Args:
        executor: the stage's datatrove executor, pickled with dill.
        owners: for each task the process that runs it, shared by all processes of the run.
        log: file that takes what the worker prints.
        lock: file that it locks while it lives.
    """

    executor: bytes
    owners: Array[c_long]
    log: Path
    lock: Path


_setting: WorkerSetting | None = None
_executor: Any = None
"""The stage's executor in this process, unpickled by the first task, so that a failure has a task."""


def start(setting: WorkerSetting) -> None:
    """Initializer of the process."""
    global _setting
    _setting = setting
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(setting.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    faulthandler.enable()
    fcntl.flock(os.open(setting.lock, os.O_RDWR | os.O_CREAT, 0o666), fcntl.LOCK_SH)
    compute_with_one_thread()


def run_task(task: int) -> TaskFailure | None:
    """Run one task of the stage; its failure is the result."""
    global _executor
    assert _setting is not None
    _setting.owners[task] = os.getpid()
    try:
        if _executor is None:
            _executor = dill.loads(_setting.executor)
        fresh = copy.copy(_executor)
        fresh.pipeline = copy.deepcopy(_executor.pipeline)  # every task counts from zero
        fresh._run_for_rank(task, local_rank=1)  # other than 0: log lines go to the log file alone
    except Exception as error:
        return TaskFailure.of(task, error)
    return None


def compute_with_one_thread() -> None:
    """The tasks are what runs in parallel; and sums of floats depend on the number of threads."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["NUMBA_NUM_THREADS"] = "1"
    if "torch" in sys.modules:  # which has read its environment already
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(_AFTER_ORPHANED)
