"""Mixture weights that change while training runs."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from numbered import SOURCE, Documents, Numbered, targets_of
from small_trainer import OneNumber, small_trainer

from datamodules.loader import TrainLoader
from datamodules.omni import OmniDataModule
from onn_lightning.batch import Batch


def module_of(num_workers: int = 0, weight: float = 1.0) -> OmniDataModule:
    """Three sources of documents that fill a row each; `b` has the given weight."""
    train = {name: Documents([8] * 500, number) for number, name in enumerate("abc")}
    train["b"].weight = weight
    module = OmniDataModule(
        [Numbered()], train, num_workers=num_workers, row_length=8, rows_per_batch=1, buffer_size=1
    )
    module.setup("fit")
    return module


def names(loader: TrainLoader, count: int) -> str:
    """The source of each of the next batches."""
    return "".join("abc"[targets_of(batch)[0] // SOURCE] for batch in islice(loader, count))


def test_weights_change_at_once_and_nothing_is_caught_up() -> None:
    module = module_of()
    loader = module.train_dataloader()
    assert Counter(names(loader, 30)) == {"a": 10, "b": 10, "c": 10}
    module.set_mixture_weights({"a": 0.1, "b": 0.0})
    assert module.mixture_weights == {"a": 0.1, "b": 0.0, "c": 1.0}
    few = Counter(names(loader, 110))
    assert few["b"] == 0 and few["a"] in (10, 11)
    module.set_mixture_weights({"a": 1.0, "b": 1.0})
    assert Counter(names(loader, 30)) == {"a": 10, "b": 10, "c": 10}  # no arrears are paid


@pytest.mark.parametrize("num_workers", [1, 2])
def test_running_workers_follow_at_a_certain_batch(num_workers: int) -> None:
    def run() -> str:
        module = module_of(num_workers)
        loader = module.train_dataloader()
        begun = names(loader, 6)
        module.set_mixture_weights({"a": 0.0, "b": 0.0})
        return begun + names(loader, 20)

    given = run()
    assert given == run()  # whatever the workers had read ahead
    assert set(given[6 + 2 * num_workers + 1 :]) == {"c"}
    assert set(given[6:8]) != {"c"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_weights_it_had_bit_for_bit(num_workers: int) -> None:
    module = module_of(num_workers)
    loader = module.train_dataloader()
    names(loader, 7)
    module.set_mixture_weights({"a": 0.5})
    names(loader, 1)
    module.set_mixture_weights({"b": 4.0})
    state = loader.state_dict()
    following = [targets_of(batch) for batch in islice(loader, 20)]
    resumed_module = module_of(num_workers)
    resumed = resumed_module.train_dataloader()
    resumed.load_state_dict(state)
    assert resumed_module.mixture_weights == {"a": 0.5, "b": 4.0, "c": 1.0}
    assert [targets_of(batch) for batch in islice(resumed, 20)] == following


def test_over_other_numbers_of_workers_the_weights_stay() -> None:
    module = module_of(2)
    loader = module.train_dataloader()
    names(loader, 7)
    module.set_mixture_weights({"a": 0.0, "c": 0.0})
    resumed_module = module_of(0)
    resumed = resumed_module.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert names(resumed, 20)[3:] == "b" * 17  # after what waited in three buffers of one piece


def test_weights_edited_in_the_config_count_on_resume() -> None:
    module = module_of()
    loader = module.train_dataloader()
    module.set_mixture_weights({"a": 0.0})
    names(loader, 3)
    edited = module_of(weight=7.0)
    resumed = edited.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert edited.mixture_weights == {"a": 1.0, "b": 7.0, "c": 1.0}
    assert Counter(names(resumed, 90))["b"] in (69, 70, 71)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"d": 1.0}, r"name \['d'\], the training sources are \['a', 'b', 'c'\]"),
        ({"a": -0.1}, "'a' must be finite and at least 0, got -0.1"),
        ({"a": float("nan")}, "'a' must be finite"),
        ({"a": "much"}, "'a' must be a number, got 'much'"),
        ({"a": 0, "b": 0, "c": 0}, "leave at least one source"),
    ],
)
def test_impossible_weights_are_refused_and_change_nothing(weights: dict[str, Any], message: str) -> None:
    module = module_of()
    with pytest.raises(ValueError, match=message):
        module.set_mixture_weights(weights)
    assert module.mixture_weights == {"a": 1.0, "b": 1.0, "c": 1.0}


class Anneal(Callback):
    """Takes everything but `c` out of the mixture at the tenth step."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 10:
            trainer.datamodule.set_mixture_weights({"a": 0.0, "b": 0.0})  # type: ignore[attr-defined]


class Recorder(OneNumber):
    """Writes down where its batches came from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = ""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen += "abc"[targets_of(batch)[0] // SOURCE]
        return super().training_step(batch, batch_idx)


def test_a_callback_changes_the_mixture_of_a_running_trainer(tmp_path: Path) -> None:
    model = Recorder()
    trainer = small_trainer(tmp_path, 20, callbacks=[Anneal()])
    trainer.fit(model, module_of())
    assert set(model.seen[:10]) == {"a", "b", "c"} and model.seen[10:] == "c" * 10
