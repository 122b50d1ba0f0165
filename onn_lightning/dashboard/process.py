"""The training process's side of the drawing process: ask, look, never wait.

Notable:
- A thread talks to the process: starting it, handing it a job and waiting for the answer all leave the
  training thread alone. It sleeps in system calls, so it does not hold the interpreter either.
- One job at a time; while one is under way further ones are refused, not queued.
- The process is a fresh interpreter, not a fork and not `multiprocessing`: it inherits no locks and no CUDA
  context, and it does not run the user's script a second time. Its own process group keeps Ctrl-C from it;
  in a session of its own Linux would give it a whole share of the CPU, whatever its priority (autogroups).
- A process that ended by itself is started again for the next job, and given up after `MOST_CRASHES` in a
  row.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from onn_lightning.dashboard.job import Drawn, Job

MOST_CRASHES = 3
WORKER = (sys.executable, "-P", "-m", "onn_lightning.dashboard.worker")


class DrawingProcess:
    """Draws in another process.

    Args:
        command: what to start; the id of this process is added.
    """

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self._command = [*command, str(os.getpid())]
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Drawn] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._crashes = 0
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="dashboard", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether a job would be taken now."""
        return self._idle.is_set() and not self._closing and self._crashes < MOST_CRASHES

    @property
    def pid(self) -> int | None:
        """Id of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def submit(self, job: Job) -> bool:
        """Hand a job over; False, and nothing done, where one is under way."""
        if not self.idle:
            return False
        self._idle.clear()
        self._jobs.put(job)
        return True

    def answers(self) -> list[Drawn]:
        """What was drawn, or failed, since the last time."""
        taken = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._answers.get_nowait())
        return taken

    def wait(self, seconds: float) -> bool:
        """Wait until no job is under way; whether that came true in time."""
        return self._idle.wait(seconds)

    def close(self, seconds: float) -> None:
        """End the process: of itself where it does so in time, and else killed."""
        self._closing = True
        try:
            deadline = time.monotonic() + seconds
            self._idle.wait(seconds)
            self._jobs.put(None)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            process = self._process
            if process is not None:
                process.kill()
                process.wait()

    # ---- in the thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                answer = self._converse(job)
                self._crashes = 0
            except Exception as error:  # broken pipes, a full process table, a torn answer, ...
                self._crashes += 1
                answer = Drawn(job.step, (self._obituary(error),), {}, {})
            self._answers.put(answer)
            self._idle.set()
        self._end()

    def _converse(self, job: Job) -> Drawn:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._start()
        assert self._process is not None and self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(job, self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        assert isinstance(answer, Drawn)
        return answer

    def _start(self) -> None:
        package_folder = str(Path(__file__).resolve().parents[2])
        paths = [package_folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"},
        )

    def _obituary(self, error: Exception) -> str:
        """One line on why there is no answer."""
        if self._process is None or self._errors is None:
            return f"the drawing process could not be started: {error}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipes close a moment before it has ended
        self._process.kill()
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the drawing process {how}" + (f": {said[-1]}" if said else "")

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        for pipe in (process.stdin, process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what was not flushed to a process that is gone
                if pipe is not None:
                    pipe.close()
        process.wait()
        self._process = None  # not before: who closes meanwhile kills what takes its time
