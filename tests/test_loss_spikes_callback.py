"""Loss spikes in real training: told, counted, and gone back to before, with the data after them."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from spiking_runs import train
from torch import Tensor
from torch.distributed.tensor import DTensor

from onn_lightning import OmniModule
from onn_lightning.callbacks import LossSpikes
from onn_lightning.checkpoint import description
from onn_lightning.distributed import FSDP2Strategy

CLEAN = range(40)


def assert_same_weights(got: OmniModule, expected: OmniModule) -> None:
    for name, value in expected.state_dict().items():
        assert torch.equal(value, got.state_dict()[name]), name


def logged(folder: Path) -> dict[int, float]:
    found = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss_spikes"]]
            found |= {int(row["step"]): float(row["train/loss_spikes"]) for row in rows}
    return found


def test_a_clean_run_has_no_spike(tmp_path: Path) -> None:
    _, read, spikes = train(tmp_path, CLEAN)
    assert spikes.total == 0 and len(read) == 1


def test_a_spike_is_told_and_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, read, spikes = train(tmp_path, CLEAN, bad=[8, 12, 13, 14], roll_back=False, log_every_n_steps=5)
    told = [str(warning.message) for warning in caught if "LossSpikes" in str(warning.message)]
    assert [line.split(":")[1].strip() for line in told[:2]] == ["optimizer step 9", "optimizer step 13"]
    assert all("the loss of patch is" in line and "was expected" in line for line in told)
    assert "the spike of optimizer step 13 lasts" in told[2] and len(told) == 3
    assert spikes.total == 2 and read == [list(range(20))]
    assert [logged(tmp_path)[step] for step in (4, 9, 14, 19)] == [0, 1, 2, 2]


def test_after_a_roll_back_the_run_is_one_that_never_saw_the_spike(tmp_path: Path) -> None:
    module, read, spikes = train(tmp_path / "hurt", CLEAN, bad=[12, 13])
    assert read == [list(range(15)), list(range(14, 24))]  # batch 14 was fetched as the run stopped
    expected, _, _ = train(tmp_path / "spared", [*range(10), *range(14, 40)])
    assert_same_weights(module, expected)
    assert spikes.total == 1

    checkpoints = tmp_path / "hurt/checkpoints"
    assert sorted(path.name for path in checkpoints.glob("*.ckpt")) == [
        "step=10-rolled-back-14.ckpt",
        "step=10.ckpt",
        "step=15.ckpt",
        "step=20.ckpt",
        "step=5.ckpt",
    ]
    (entry,) = description.history(description.read(checkpoints / "step=20.ckpt"))
    assert entry["step"] == 10
    assert "from step 14 to step 10, since the loss spiked from step 13 on" in entry["what"]


def test_a_stretch_that_goes_on_is_passed_in_several_roll_backs(tmp_path: Path) -> None:
    module, read, spikes = train(tmp_path / "hurt", CLEAN, bad=range(12, 18))
    assert len(read) == 4
    expected, _, _ = train(tmp_path / "spared", [*range(10), *range(18, 40)])
    assert_same_weights(module, expected)
    assert spikes.total == 3


def test_checkpoints_of_the_spike_are_put_aside(tmp_path: Path) -> None:
    """Read at every eighth step only: by then there is a checkpoint in the middle of the spike."""
    train(tmp_path, CLEAN, bad=range(13, 16), log_every_n_steps=8, max_steps=17)
    aside = sorted(path.name for path in (tmp_path / "checkpoints/rolled_back").iterdir())
    assert aside == ["step=15.ckpt"]


def test_a_run_that_does_not_get_over_it_stops_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"after 2 roll-backs in a row.*learning rate"):
        train(tmp_path, CLEAN, bad=range(12, 40), max_rollbacks=2)
    assert not list((tmp_path / "checkpoints").glob("step=1[1-9]*.ckpt"))


def test_without_a_checkpoint_of_before_it_the_run_goes_on_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no intact checkpoint of before optimizer step 13"):
        _, read, _ = train(tmp_path, CLEAN, bad=[12, 13], max_steps=18, every_n_train_steps=14)
    assert read == [list(range(18))]


@pytest.mark.parametrize("name", ["sustained_steps", "max_rollbacks"])
def test_a_number_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"LossSpikes: {name} is 0"):
        LossSpikes(**{name: 0})


def _two_ranks(rank: int, folder: str) -> None:
    settings = {"devices": 2, "strategy": "ddp"}
    hurt, read, spikes = train(Path(folder, "hurt"), CLEAN, bad=[12, 13], **settings)
    spared, _, _ = train(Path(folder, "spared"), [*range(10), *range(14, 40)], **settings)
    assert_same_weights(hurt, spared)
    assert read == [list(range(15)), list(range(14, 24))] and spikes.total == 1


@pytest.mark.slow
def test_two_ranks_go_back_together(tmp_path: Path) -> None:
    run_ranks(_two_ranks, str(tmp_path))


def _two_ranks_with_shards(rank: int, folder: str) -> None:
    def run(
        name: str, numbers: Sequence[int], bad: Sequence[int]
    ) -> tuple[dict[str, Tensor], list[list[int]]]:
        settings = {"max_steps": 16, "devices": 2, "make_strategy": lambda: FSDP2Strategy(2)}
        module, read, _ = train(Path(folder, name), numbers, bad, **settings)
        state = module.state_dict()
        return {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in state.items()}, read

    hurt, read = run("hurt", CLEAN, bad=[12, 13])
    spared, _ = run("spared", [*range(10), *range(14, 40)], bad=[])
    torch.testing.assert_close(hurt, spared, rtol=0, atol=0)
    assert read == [list(range(15)), list(range(14, 20))]


@pytest.mark.slow
def test_two_ranks_go_back_to_shards(tmp_path: Path) -> None:
    run_ranks(_two_ranks_with_shards, str(tmp_path))
    checkpoints = tmp_path / "hurt/checkpoints"
    assert (checkpoints / "step=10.ckpt").is_dir() and (checkpoints / "step=15.ckpt").is_dir()
    assert not list((checkpoints / "rolled_back").iterdir())
    (entry,) = description.history(description.read(checkpoints / "step=15.ckpt"))
    assert entry["step"] == 10
