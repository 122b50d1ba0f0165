"""The drawing process: real ones, that are refused, killed and left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onn_lightning.dashboard.heatmap import NeuronHistory
from onn_lightning.dashboard.job import Drawn, Job
from onn_lightning.dashboard.process import MOST_CRASHES, DrawingProcess

SECONDS = 120.0  # for a machine with much else to do
SIZES = {"0.moie.up": 4, "0.moie.down": 2}


def job(folder: Path, step: int = 1) -> Job:
    history = NeuronHistory()
    history.add(step, SIZES, np.linspace(0, 1, 6))
    samples = {"gate/up": np.array([0.0, 1.0, np.nan, 3.0], dtype=np.float32), "none/up": np.array([np.nan])}
    return Job(step, folder, folder / "csv", history.arrays(), samples, images=True)


def answer(process: DrawingProcess) -> Drawn:
    assert process.wait(SECONDS)
    (drawn,) = process.answers()
    return drawn


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def process() -> Iterator[DrawingProcess]:
    process = DrawingProcess()
    yield process
    process.close(SECONDS)


def test_a_job_is_drawn_counted_and_answered(process: DrawingProcess, tmp_path: Path) -> None:
    assert process.submit(job(tmp_path, step=7))
    assert not process.submit(job(tmp_path))  # one at a time
    drawn = answer(process)
    assert (drawn.step, drawn.problems) == (7, ())
    assert (tmp_path / "neurons.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "core_metrics.png").exists()  # there are no logs
    assert len(NeuronHistory.load(tmp_path / "neurons.npz")) == 1
    assert drawn.images["neurons"].png == (tmp_path / "neurons.png").read_bytes()
    counts = drawn.histograms.pop("gate/up")
    assert (counts.low, counts.high, counts.number, counts.total) == (0, 3, 3, 4)
    assert sum(counts.counts) == 3 and counts.limits[-1] == 3
    assert not drawn.histograms


def test_files_that_cannot_be_written_are_named_and_the_next_job_is_drawn(
    process: DrawingProcess, tmp_path: Path
) -> None:
    assert process.submit(job(Path("/proc")))
    problems = answer(process).problems
    assert [problem.split(":")[0] for problem in problems] == ["neurons.npz", "neurons.png"]
    assert process.submit(job(tmp_path))
    assert answer(process).problems == ()


def test_a_killed_process_is_named_and_started_again(process: DrawingProcess, tmp_path: Path) -> None:
    assert process.submit(job(tmp_path))
    answer(process)
    assert process.pid is not None
    first = process.pid
    os.kill(first, signal.SIGSTOP)  # so that the job is under way for certain
    assert process.submit(job(tmp_path))
    os.kill(first, signal.SIGKILL)
    assert answer(process).problems == ("the drawing process was killed by signal 9",)
    assert process.submit(job(tmp_path))
    assert answer(process).problems == ()
    assert process.pid != first


def test_a_process_that_never_answers_is_given_up(tmp_path: Path) -> None:
    program = "import sys; sys.exit('no such luck')"
    process = DrawingProcess((sys.executable, "-c", program))
    for _ in range(MOST_CRASHES):
        assert process.submit(job(tmp_path))
        assert answer(process).problems == ("the drawing process ended with code 1: no such luck",)
    assert not process.submit(job(tmp_path))
    process.close(SECONDS)


def test_a_program_that_cannot_be_started_is_one_problem(tmp_path: Path) -> None:
    process = DrawingProcess((str(tmp_path / "no_such_program"),))
    assert process.submit(job(tmp_path))
    assert "could not be started" in answer(process).problems[0]
    process.close(SECONDS)


def test_closing_waits_no_longer_than_it_may_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = DrawingProcess((sys.executable, "-c", "import time; time.sleep(1000)"))
    assert process.submit(job(tmp_path))
    while process.pid is None:
        time.sleep(0.01)
    pid = process.pid
    start = time.monotonic()
    process.close(0.1)
    assert time.monotonic() - start < SECONDS
    assert not process.submit(job(tmp_path))
    wait_until_gone(pid)


SLOW_TO_END = """
import pickle, sys, time
from onn_lightning.dashboard.job import Drawn
pickle.dump(Drawn(pickle.load(sys.stdin.buffer).step, (), {}, {}), sys.stdout.buffer)
sys.stdout.flush()
sys.stdin.read()
time.sleep(1000)
"""


def test_closing_kills_an_idle_process_that_does_not_end_by_itself(tmp_path: Path) -> None:
    process = DrawingProcess((sys.executable, "-c", SLOW_TO_END))
    assert process.submit(job(tmp_path))
    assert answer(process).problems == ()
    pid = process.pid
    assert pid is not None
    process.close(0.5)
    assert not is_alive(pid)


PARENT = """
import os, sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from test_drawing_process import SECONDS, job
from onn_lightning.dashboard.process import DrawingProcess
process = DrawingProcess()
process.submit(job(Path({folder!r})))
assert process.wait(SECONDS)
if os.fork() == 0:  # as a loader worker does: it holds copies of the pipes
    time.sleep(5)
    os._exit(0)
print(process.pid, flush=True)
time.sleep(1000)
"""


def test_the_process_is_gone_when_its_parent_was_killed(tmp_path: Path) -> None:
    program = PARENT.format(path=sys.path, folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    wait_until_gone(pid)
