"""Ranks that see different folders go on from the checkpoint that rank 0 chooses, or say why they cannot."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import run_ranks

from onn_lightning.checkpoint import writing
from onn_lightning.checkpoint.complete import newest_intact_checkpoint
from onn_lightning.cli.errors import UsageError
from onn_lightning.cli.newest import Agreement

RUN = Path("runs/a")


def write(folder: Path, *steps: int) -> None:
    """Checkpoints of a run as one rank sees them, the newest last."""
    checkpoints = folder / RUN / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for age, step in enumerate(reversed(steps)):
        path = checkpoints / f"step={step}.ckpt"
        writing.write({"global_step": step}, path)
        os.utime(path, (1000 - age, 1000 - age))


def choose() -> Path | None:
    return newest_intact_checkpoint(RUN)


def refuse() -> Path | None:
    raise UsageError("runs/a already holds a trained run")


def agree(rank: int, folder: str) -> None:
    """Each rank in a folder of its own, as if a network file system were late."""
    os.chdir(Path(folder, str(rank)))
    agreement = Agreement(choose, RUN)
    assert agreement.checkpoint == RUN / "checkpoints/step=5.ckpt"
    dist.init_process_group("gloo")  # at the address that served the choice
    dist.barrier()


@pytest.mark.parametrize("others", [(5, 9), (9, 5), (2, 5)])
def test_all_ranks_take_the_choice_of_rank_0(tmp_path: Path, others: tuple[int, ...]) -> None:
    write(tmp_path / "0", 2, 5)
    write(tmp_path / "1", *others)
    run_ranks(agree, str(tmp_path))


def agree_late_or_not(rank: int, folder: str) -> None:
    """Rank 1 sees nothing: first for a while, then for good; then rank 0 refuses."""
    own = Path(folder, str(rank))
    os.chdir(own)
    if rank == 1:
        threading.Timer(0.5, write, (own, 5)).start()
    first = Agreement(choose, RUN)  # kept: rank 0 serves those who ask for as long as it is there
    assert first.checkpoint == RUN / "checkpoints/step=5.ckpt"
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    if rank == 1:
        (own / RUN / "checkpoints/step=5.ckpt").unlink()
        with pytest.raises(UsageError, match=r"rank 1 on .* does not see runs/a/checkpoints/step=5\.ckpt"):
            Agreement(choose, RUN, seconds_to_see=0.3)
    else:
        Agreement(choose, RUN)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "2"
    began = time.monotonic()
    with pytest.raises(UsageError, match="already holds a trained run"):
        Agreement(refuse if rank == 0 else choose, RUN)
    assert time.monotonic() - began < 8
    dist.init_process_group("gloo")


def test_a_rank_that_does_not_see_the_file_waits_and_then_names_itself(tmp_path: Path) -> None:
    write(tmp_path / "0", 5)
    (tmp_path / "1" / RUN / "checkpoints").mkdir(parents=True)
    run_ranks(agree_late_or_not, str(tmp_path))


def test_processes_that_a_rank_launches_inherit_its_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 5, 9)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    inherited = f"{os.getppid()}:checkpoints/step=5.ckpt"
    monkeypatch.setenv("ONN_LIGHTNING_CHECKPOINT", inherited)
    assert Agreement(choose, RUN).checkpoint == RUN / "checkpoints/step=9.ckpt"  # it was not launched
    monkeypatch.setenv("ONN_LIGHTNING_CHECKPOINT", inherited)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Agreement(refuse, RUN).checkpoint == RUN / "checkpoints/step=5.ckpt"
    monkeypatch.setenv("ONN_LIGHTNING_CHECKPOINT", f"{os.getppid()}:")
    assert Agreement(refuse, RUN).checkpoint is None
