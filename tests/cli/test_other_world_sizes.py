"""A run goes on with another number of ranks: no document is trained twice, none is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_standins import Waves
from command_processes import DDP, ended, printed, recorded, start
from lightning.pytorch import Callback, LightningModule, Trainer

from onn_lightning.document import Document

Write = Callable[..., str]
DOCUMENTS, LENGTH = 100, 12


class Numbered(Waves):
    """Series that each repeat a number of their own."""

    def __len__(self) -> int:
        return DOCUMENTS

    def __getitem__(self, index: int) -> Document:
        return [("sensor", [float(index)] * LENGTH)]

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter(range(DOCUMENTS))


class RecordsDocuments(Callback):
    """Appends, for every token of every batch, the number of its document to a file."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        numbers = batch.modalities["sensor"].features[:, 0].tolist()
        with Path(f"documents.{trainer.global_rank}").open("a") as file:
            file.writelines(f"{trainer.global_step} {number:.0f}\n" for number in numbers)


def trained(folder: Path, until: int) -> Counter[int]:
    """Tokens of each document that were trained up to a step, on all ranks; rows cut documents in pieces."""
    lines = [line.split() for path in folder.glob("documents.*") for line in path.read_text().splitlines()]
    return Counter(int(number) for step, number in lines if int(step) <= until)


@pytest.mark.slow
def test_two_ranks_then_one_then_two_go_on_at_the_exact_place_in_the_data(
    write_config: Write, folder: Path
) -> None:
    def command(stop_at: int, *further: str) -> tuple[str, ...]:
        records = {"file": "losses", "stop_at": stop_at}
        changes = {
            "data.init_args.modalities.0.init_args.scale": 1.0,
            "data.init_args.train": {"numbered": {"class_path": f"{__name__}.Numbered"}},
            "data.init_args.batches_per_epoch": 1000,
            "data.init_args.buffer_size": 8,  # all is out before the second epoch of documents comes in
            "trainer.max_steps": 1000,
            "trainer.logger": False,
            "trainer.limit_val_batches": 0,
            "trainer.callbacks": [
                {"class_path": "command_processes.RecordsLosses", "init_args": records},
                {"class_path": f"{__name__}.RecordsDocuments"},
                {"class_path": "onn_lightning.callbacks.RunReport", "init_args": {"answers": 0}},
            ],
        }
        return ("fit", "--config", write_config("run.yaml", changes), "--resume", *further)

    for stop_at, ranks in ((4, 2), (8, 1), (11, 2), (24, 2)):
        codes = ended(start(command(stop_at, *(DDP if ranks == 2 else ())), folder, ranks))
        assert codes == [0] * ranks, printed(folder)[-3000:]
    assert sorted(recorded(folder / "losses")) == list(range(1, 25))
    assert sorted(recorded(folder / "losses", 1)) == [*range(1, 5), *range(9, 25)]
    few, many = trained(folder, 11), trained(folder, 24)
    assert sum(few.values()) > 50 * LENGTH and max(few.values()) == LENGTH  # none twice
    assert len(many) == DOCUMENTS and min(many.values()) >= LENGTH  # none lost
