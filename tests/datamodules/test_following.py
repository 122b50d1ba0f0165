"""Sources that grow while they are read: each document once, no restart, exact resume."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from numbered import (
    STRIDE,
    Documents,
    Numbered,
    assert_nothing_lost_or_given_twice,
    stream_of,
    targets_of,
)
from PIL import Image
from small_trainer import OneNumber, small_trainer

from datamodules.audio import AudioModality
from datamodules.growing import GrowingJsonLines
from datamodules.image import ImageModality
from datamodules.loader import TrainLoader
from datamodules.omni import OmniDataModule
from datamodules.places import ReaderPlace, divided, fresh_places
from datamodules.prepared import PreparedSource, ShardWriter, TokenLayout, write_manifest
from datamodules.sources import Source
from datamodules.stream import BatchOrder
from datamodules.text import TextModality
from onn_lightning.callbacks import GracefulStop

BLOCKS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=9), min_size=1, max_size=6)


def followed(blocks: list[list[int]], weight: float = 1.0) -> Documents:
    """A source that shows its first block, and has the others added one by one."""
    return Documents(blocks[0], 0, weight, [len(blocks[0])])


def module_of(train: dict[str, Source], num_workers: int = 0, **settings: Any) -> OmniDataModule:
    settings = {"row_length": 8, "rows_per_batch": 1, "buffer_size": 4, "poll_seconds": 0.05} | settings
    module = OmniDataModule([Numbered()], train, num_workers=num_workers, **settings)
    module.setup("fit")
    return module


def first_of(target: int) -> int:
    return target // STRIDE


def test_each_block_is_shuffled_by_itself_and_read_once() -> None:
    source = Documents([2] * 90, blocks=[40, 41, 90])
    stream = stream_of({"a": source}, row_length=2, rows=1, buffer_size=1)
    stream.begin_at(fresh_places({"a": 1.0}, 1), 0)
    order = [first_of(targets_of(stream[BatchOrder(0, (1.0,))].batch)[0]) for _ in range(90)]
    assert sorted(order[:40]) == list(range(40)) and order[:40] != list(range(40))
    assert order[40] == 40
    assert sorted(order[41:]) == list(range(41, 90)) and order[41:] != list(range(41, 90))


def test_a_source_with_nothing_new_is_passed_over_and_has_nothing_to_catch_up() -> None:
    news, old = Documents([4] * 3, 0, 1.0, [3]), Documents([4] * 50, 1, 1.0)
    stream = stream_of({"news": news, "old": old}, row_length=4, rows=1, buffer_size=1)
    stream.begin_at(fresh_places({"news": 1.0, "old": 1.0}, 1), 0)

    def take(count: int) -> int:
        """Batches out of the followed source."""
        batches = [stream[BatchOrder(0, (1.0, 1.0))].batch for _ in range(count)]
        return sum(first_of(targets_of(batch)[0]) < 100 for batch in batches)

    assert take(30) == 3
    news.add([4] * 40)
    time.sleep(0.02)  # longer than a reader waits before it looks again
    assert take(40) in (19, 20, 21)


@given(
    BLOCKS,
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=2, max_size=6),
    st.data(),
)
@settings(max_examples=25)
def test_resume_is_exact_while_the_source_grows_and_the_readers_change(
    blocks: list[list[int]], turns: list[tuple[int, int]], data: st.DataObject
) -> None:
    news = followed(blocks)
    sources: dict[str, Source] = {"news": news, "old": Documents([7, 20, 3], 1)}
    stream = stream_of(sources, poll_seconds=1e-9)
    seen: Counter[int] = Counter()
    places: list[ReaderPlace] = []
    coming = blocks[1:]
    for readers, batches in turns:
        places = divided(places, readers) if places else fresh_places({"news": 1.0, "old": 1.0}, readers)
        stream.begin_at(places, 0)
        for _ in range(batches):
            if coming and data.draw(st.booleans()):
                news.add(coming.pop(0))
            reader = data.draw(st.integers(0, readers - 1))
            delivery = stream[BatchOrder(reader, (1.0, 1.0))]
            places[reader] = ReaderPlace.from_plain(delivery.place)
            seen.update(targets_of(delivery.batch))
    news.refresh()
    news.add([2] * 60)  # so that every position below the front has a document
    news.refresh()
    assert_nothing_lost_or_given_twice(stream, seen, places)


def test_a_reader_waits_for_documents_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    news = Documents([], blocks=[])
    loader = module_of({"news": news}).train_dataloader()
    adding = threading.Timer(0.3, lambda: news.add([8, 8, 8]))
    adding.start()
    with caplog.at_level(logging.INFO):
        assert [len(targets_of(batch)) for batch in islice(loader, 3)] == [7, 7, 7]
    assert caplog.text.count("no new documents in 'news': looking again every 0.05 seconds") == 1
    adding.join()


def test_documents_that_vanished_are_refused() -> None:
    news = Documents([8] * 12, blocks=[4, 12])
    loader = module_of({"news": news}).train_dataloader()
    for _ in islice(loader, 5):
        pass
    state = loader.state_dict()
    for lengths, blocks in (([8] * 4, [4]), ([8] * 20, [4, 11, 20])):
        now = Documents(lengths, blocks=blocks)
        with pytest.raises(ValueError, match=rf"'news' had 12 documents .* now it has {len(lengths)} in"):
            module_of({"news": now}).train_dataloader().load_state_dict(state)
    grown = module_of({"news": Documents([8] * 20, blocks=[4, 12, 20])}).train_dataloader()
    grown.load_state_dict(state)
    seen = {first_of(targets_of(batch)[0]) for batch in islice(grown, 15)}
    assert len(seen) == 15


def test_only_a_training_source_may_grow_and_only_such_a_one_may_be_empty() -> None:
    news: dict[str, Source] = {"news": Documents([], blocks=[])}
    with pytest.raises(ValueError, match="'validation/news' grows while it is read"):
        OmniDataModule([Numbered()], train=news, validation=news).setup("fit")
    with pytest.raises(ValueError, match="'train/old' holds no documents"):
        OmniDataModule([Numbered()], train={"old": Documents([])}).setup("fit")


def append(path: Path, first: int, count: int) -> None:
    with path.open("a") as file:
        for number in range(first, first + count):
            items = [{"modality": "text", "value": [number * STRIDE, 8]}]
            file.write(json.dumps({"items": items}) + "\n")
            file.flush()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lines_that_are_written_while_it_runs_are_read_by_running_workers(
    tmp_path: Path, num_workers: int
) -> None:
    path = tmp_path / "log.jsonl"
    loader = module_of({"log": GrowingJsonLines(path)}, num_workers).train_dataloader()
    writing = threading.Thread(
        target=lambda: [(append(path, 20 * turn, 20), time.sleep(0.1)) for turn in range(3)]
    )
    writing.start()
    seen = Counter(first_of(targets_of(batch)[0]) for batch in islice(loader, 58))
    writing.join()
    assert max(seen.values()) == 1 and len(seen) == 58


def prepare(folder: Path, text: TextModality, first: int, count: int) -> None:
    """Put a prepared data set into a folder, complete from the moment it has its name."""
    partial = folder / f"{first:03}.partial"
    with ShardWriter(partial / "shards", "00000", TokenLayout.of(text.tokenizer)) as writer:
        for number in range(first, first + count):
            writer.add(f"{number}", [("text", text.tokenizer.encode(f"<{number}>"), True)])
    write_manifest(partial, text.tokenizer, sources=[], records=[], config={})
    partial.rename(folder / f"{first:03}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_prepared_sets_that_are_added_are_read_once_and_resumed_with_other_workers(
    tmp_path: Path, num_workers: int
) -> None:
    text = TextModality(max_words=50)
    seen: Counter[str] = Counter()

    def loader_of(num_workers: int) -> TrainLoader:
        module = OmniDataModule(
            [text],
            {"sets": PreparedSource(tmp_path, follow=True)},
            row_length=8,
            rows_per_batch=1,
            buffer_size=4,
            poll_seconds=0.05,
            num_workers=num_workers,
        )
        module.setup("fit")
        return module.train_dataloader()

    def take(loader: TrainLoader, count: int) -> None:
        for batch in islice(loader, count):
            ids = batch.modalities["text"].features[:, 0].tolist()
            seen.update(re.findall("<[0-9]+>", text.tokenizer.decode(ids)))

    loader = loader_of(num_workers)  # nothing is there yet
    prepare(tmp_path, text, 0, 20)
    take(loader, 9)
    prepare(tmp_path, text, 20, 5)
    resumed = loader_of(2 - num_workers)
    resumed.load_state_dict(loader.state_dict())
    take(resumed, 4)
    prepare(tmp_path, text, 25, 30)
    take(resumed, 37)  # a row has room for one document
    assert max(seen.values()) == 1 and len(seen) == 50


def test_a_set_that_was_put_before_known_ones_between_two_runs_is_refused(tmp_path: Path) -> None:
    text = TextModality(max_words=50)

    def loader() -> TrainLoader:
        module = OmniDataModule(
            [text], {"sets": PreparedSource(tmp_path, follow=True)}, row_length=8, rows_per_batch=1
        )
        module.setup("fit")
        return module.train_dataloader()

    for first in (10, 20):
        prepare(tmp_path, text, first, 10)
    running = loader()
    next(iter(running))
    prepare(tmp_path, text, 0, 10)  # as many documents as those have that it is put before
    with pytest.raises(ValueError, match=r"first documents of source 'sets' were 20 \(.*put before others"):
        loader().load_state_dict(running.state_dict())


def test_data_prepared_anew_with_as_many_documents_are_other_data(tmp_path: Path) -> None:
    text = TextModality(max_words=50)
    prepare(tmp_path / "old", text, 0, 10)
    prepare(tmp_path / "new", text, 20, 10)

    def loader(name: str) -> TrainLoader:
        module = OmniDataModule([text], {"sets": PreparedSource(tmp_path / name)}, row_length=8)
        module.setup("fit")
        return module.train_dataloader()

    running = loader("old")
    next(iter(running))
    with pytest.raises(ValueError, match=r"saved with documents of source 'sets' = 10 \(.*now it is 10 \("):
        loader("new").load_state_dict(running.state_dict())


def test_half_a_line_waits_for_its_other_half_and_lines_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    source = GrowingJsonLines(path)
    assert len(source) == 0 and not source.refresh() and not list(source.indices_with("text"))
    append(path, 0, 2)
    half = '{"items": [{"modality": "text", '
    with path.open("a") as file:
        file.write("\n" + half)
    assert source.refresh() and len(source) == 2 and list(source.block_ends) == [1, 2]
    assert not source.refresh() and list(source.indices_with("text")) == [0, 1]
    with path.open("a") as file:
        file.write('"value": [5, 8]}]}\n')
    assert source.refresh() and source[2] == [("text", [5, 8], True)]
    assert source.describe(2) == f"{path}:4"
    path.write_text("")
    with pytest.raises(ValueError, match="may only grow"):
        source.refresh()


def test_a_modality_may_come_for_the_first_time_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    modalities = [TextModality(max_words=50), ImageModality(patch_size=8), AudioModality()]
    module = OmniDataModule(
        modalities, {"log": GrowingJsonLines(path)}, row_length=16, rows_per_batch=1, poll_seconds=0.05
    )
    module.setup("fit")  # nothing is there yet
    batches = iter(module.train_dataloader())
    text, image = {"modality": "text", "text": "a first line"}, {"modality": "image", "path": "1.png"}
    with path.open("w") as file:
        for items in ([text], [image] * 3, [image] * 3, [image] * 3):
            file.write(json.dumps({"items": items}) + "\n")
    Image.new("RGB", (16, 8), "red").save(tmp_path / "1.png")
    rows = [next(batches), next(batches)]
    assert all(sorted(batch.modalities) == ["audio", "image", "text"] for batch in rows)
    assert sum(len(batch.modalities["image"].indices) for batch in rows) == 12


def in_a_process(task: Callable[..., None], *args: Any) -> float:
    """Run `task(*args)` in a process of its own, for at most half a minute: seconds it took."""
    process = multiprocessing.get_context("fork").Process(target=task, args=args)
    begun = time.monotonic()
    process.start()
    process.join(30)
    alive = process.is_alive()
    process.kill()
    assert not alive and process.exitcode == 0
    return time.monotonic() - begun


class InterruptLater(Callback):
    """Presses Ctrl-C while the loader waits for what never comes."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 5:
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()


def _interrupted(folder: Path, num_workers: int) -> None:
    torch.set_num_threads(1)
    module = module_of({"news": Documents([8] * 5, blocks=[5])}, num_workers, poll_seconds=60.0)
    trainer = small_trainer(folder, 50, callbacks=[GracefulStop(), InterruptLater()])
    with contextlib.suppress(SystemExit):  # Lightning ends an interrupted run like this
        trainer.fit(OneNumber(), module)
    assert trainer.global_step == 5 and trainer.interrupted
    loader = trainer.train_dataloader
    assert loader is not None
    state = loader.state_dict()
    grown = module_of({"news": Documents([8] * 9, blocks=[5, 9])}, num_workers).train_dataloader()
    grown.load_state_dict(state)
    seen = [first_of(targets_of(batch)[0]) for batch in islice(grown, 4)]
    os._exit(0 if sorted(seen) == [5, 6, 7, 8] else 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_ctrl_c_ends_a_run_that_waits_for_documents_and_loses_none(tmp_path: Path, num_workers: int) -> None:
    assert in_a_process(_interrupted, tmp_path, num_workers) < 10


def _leave_workers_waiting() -> None:
    loader = module_of({"news": Documents([8] * 5, blocks=[5])}, 3, poll_seconds=60.0).train_dataloader()
    for _ in islice(loader, 5):
        pass


def test_workers_that_wait_for_documents_do_not_delay_the_end() -> None:
    assert in_a_process(_leave_workers_waiting) < 4  # torch waits five seconds for each that sleeps


def _be_killed(sender: Any) -> None:
    loader = module_of({"news": Documents([8] * 5, blocks=[5])}, 1, poll_seconds=60.0).train_dataloader()
    for _ in islice(loader, 5):
        pass
    sender.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(60)


def test_a_worker_that_waits_ends_when_the_run_is_killed() -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_be_killed, args=(sender,))
    process.start()
    (worker,) = receiver.recv()
    process.kill()
    process.join()
    until = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        if "State:\tZ" in Path(f"/proc/{worker}/status").read_text():
            break
        time.sleep(0.05)
    assert time.monotonic() < until
