"""Executors: order, marks, and whatever can happen to a task or its process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pipeline_standins import Fail, Watcher, Write, stage
from running_slurm import PARTITION, needs_slurm

from datamodules.prepare.executors import LocalExecutor, PreparationError, RayExecutor, SlurmExecutor, Stage
from datamodules.prepare.executors.base import Executor

HERE = Path(__file__).parent


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually_gone(pids: list[int], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def until_there(*paths: Path) -> None:
    end = time.monotonic() + 20
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < end, paths
        time.sleep(0.02)


def error_of(executor: Executor, stages: list[Stage], folder: Path) -> str:
    with pytest.raises(PreparationError) as caught:
        executor.run(stages, folder, Watcher())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_stages_run_in_order_each_task_once_and_what_is_complete_is_not_run_again(tmp_path: Path) -> None:
    first, second, watcher = tmp_path / "first", tmp_path / "second", Watcher()
    first.mkdir()
    second.mkdir()
    stages = [stage("one", Write(first)), stage("two", Write(second), tasks=2)]
    LocalExecutor(workers=2).run(stages, tmp_path / "stages", watcher)
    assert watcher.begun == [("one", []), ("two", [])]
    assert sorted(watcher.completed) == [0, 0, 1, 1, 2, 3]
    latest = max(path.stat().st_mtime_ns for path in first.iterdir())
    assert latest <= min(path.stat().st_mtime_ns for path in second.iterdir())

    (tmp_path / "stages" / "one" / "completions" / "00002").unlink()
    LocalExecutor(workers=1).run(stages, tmp_path / "stages", again := Watcher())
    assert again.begun == [("one", [0, 1, 3]), ("two", [0, 1])]
    assert [len((first / str(task)).read_text().split()) for task in range(4)] == [1, 1, 2, 1]


def test_what_steps_and_datatrove_print_goes_into_log_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    LocalExecutor(workers=2).run([stage("one", Write(tmp_path))], tmp_path / "stages", Watcher())
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    logs = tmp_path / "stages" / "one"
    assert "printed by a step" in (logs / "workers.log").read_text()
    assert "Processing done" in (logs / "logs" / "task_00003.log").read_text()


def test_a_failing_task_is_named_with_stage_subject_place_and_log(tmp_path: Path) -> None:
    stages = [stage("one", Write(tmp_path), Fail(1, "raise")), stage("two", Fail(0, "exit"))]
    message = error_of(LocalExecutor(2), stages, tmp_path / "stages")
    assert message.startswith("stage one, task 1 (part 1): ZeroDivisionError: seven by nothing (")
    assert "pipeline_standins.py:" in message and "--resume" in message
    assert "ZeroDivisionError" in Path(message.rpartition("(log: ")[2].rstrip(")")).read_text()


def test_an_exception_that_cannot_travel_between_processes_is_named_all_the_same(tmp_path: Path) -> None:
    stages = [stage("one", Fail(2, "unpicklable"))]
    assert "task 2 (part 2): Unpicklable: onetwo" in error_of(LocalExecutor(2), stages, tmp_path)


@pytest.mark.parametrize(
    ("how", "ended"),
    [
        ("kill", "was killed by signal 9"),
        ("crash", "was killed by signal 11"),
        ("exit", "ended with exit code 7"),
    ],
)
def test_a_worker_that_dies_ends_the_run_and_is_named(tmp_path: Path, how: str, ended: str) -> None:
    begun = time.monotonic()
    stages = [stage("one", Write(tmp_path), Fail(0, how), Write(tmp_path, seconds=60), tasks=3)]
    message = error_of(LocalExecutor(2), stages, tmp_path / "stages")
    assert time.monotonic() - begun < 10
    pid = int((tmp_path / "0.begun").read_text())
    expected = f"worker {pid} of stage one {ended} while working on task 0 (part 0) ("
    assert message.startswith(expected) and message.endswith("run the same command with --resume")
    if how == "crash":
        assert "string_at" in (tmp_path / "stages" / "one" / "workers.log").read_text()
    assert eventually_gone([int(path.read_text()) for path in tmp_path.glob("*.begun")])


def test_a_worker_killed_from_outside_is_named_with_its_task(tmp_path: Path) -> None:
    def kill() -> None:
        until_there(tmp_path / "0.begun", tmp_path / "1.begun")
        os.kill(int((tmp_path / "1.begun").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    message = error_of(LocalExecutor(2), [stage("one", Write(tmp_path, seconds=60))], tmp_path / "stages")
    killer.join()
    assert "killed by signal 9 while working on task 1 (part 1) (if memory ran out" in message


RUN = """
import sys
from pathlib import Path
from pipeline_standins import Watcher, Write, stage
from datamodules.prepare.executors import LocalExecutor
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    LocalExecutor(2).run([stage("one", Write(folder, seconds=60))], folder / "stages", Watcher())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_main_process_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[2]}"}
    run = subprocess.Popen([sys.executable, script, tmp_path], env=environment, stderr=subprocess.PIPE)
    until_there(tmp_path / "0.begun", tmp_path / "1.begun")
    workers = [int((tmp_path / f"{task}.begun").read_text()) for task in (0, 1)]
    run.send_signal(number)
    assert run.stderr is not None and run.stderr.read() is not None  # until all have closed it
    assert run.wait(10) != 0
    assert eventually_gone(workers)


def test_workers_must_be_one_at_least() -> None:
    with pytest.raises(ValueError, match="`workers` must be at least 1, got 0"):
        LocalExecutor(workers=0)


@pytest.mark.slow
def test_ray_runs_stages_in_order_names_failures_and_starts_killed_tasks_again(tmp_path: Path) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        killed = Fail(1, "kill", marker=tmp_path / "killed")
        stages = [stage("one", Write(tmp_path), killed), stage("two", Write(tmp_path), tasks=2)]
        RayExecutor().run(stages, tmp_path / "stages", watcher := Watcher())
        assert watcher.begun == [("one", []), ("two", [])]
        assert sorted(watcher.completed) == [0, 0, 1, 1, 2, 3]
        assert (tmp_path / "killed").exists()

        RayExecutor().run(stages, tmp_path / "stages", again := Watcher())
        assert again.begun == [("one", [0, 1, 2, 3]), ("two", [0, 1])] and not again.completed

        message = error_of(RayExecutor(), [stage("three", Fail(1, "unpicklable"))], tmp_path / "stages")
        assert message.startswith("stage three, task 1 (part 1): Unpicklable: onetwo (")
    finally:
        ray.shutdown()


@needs_slurm
def test_slurm_jobs_of_a_killed_run_are_not_doubled(tmp_path: Path) -> None:
    job = subprocess.run(["sbatch", "--parsable", "--wrap", "sleep 60"], capture_output=True, text=True)
    number = job.stdout.strip()
    try:
        (tmp_path / "slurm_jobs.json").write_text(f"[{number}]")
        message = error_of(SlurmExecutor(partition="main"), [stage("one", Write(tmp_path))], tmp_path)
        assert message.startswith(
            f"Slurm jobs {number} of an earlier run of this preparation are still queued"
        )
        assert f"scancel {number}" in message
    finally:
        subprocess.run(["scancel", number], check=True)


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="there is a Slurm here")
def test_where_there_is_no_slurm_it_is_said(tmp_path: Path) -> None:
    message = error_of(SlurmExecutor(partition="main"), [stage("one", Write(tmp_path))], tmp_path)
    assert message.startswith("SlurmExecutor: there is no `sbatch` here")


@pytest.mark.slow
@needs_slurm
def test_slurm_runs_stages_in_order_and_names_failures(tmp_path: Path) -> None:
    executor = SlurmExecutor(PARTITION or "", mem_per_cpu_gb=1, poll_seconds=0.5)
    stages = [stage("one", Write(tmp_path)), stage("two", Write(tmp_path), tasks=2)]
    executor.run(stages, tmp_path / "stages", watcher := Watcher())
    assert watcher.begun == [("one", []), ("two", [])]
    assert sorted(watcher.completed) == [0, 0, 1, 1, 2, 3]

    stages = [stage("three", Fail(1, "raise")), stage("four", Write(tmp_path))]
    message = error_of(executor, stages, tmp_path / "stages")
    assert message.startswith("stage three, task 1 (part 1): ZeroDivisionError: seven by nothing (")
    waiting = ["squeue", "--me", "--noheader", "--states=PENDING,RUNNING"]
    assert not subprocess.run(waiting, capture_output=True, text=True).stdout.strip()
