"""`OmniDataModule` on real files: held-out sets, resume, ranks, damaged samples, killed workers."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn

from datamodules.audio import AudioModality
from datamodules.bad_samples import TooManyBadSamplesError
from datamodules.image import ImageModality
from datamodules.omni import OmniDataModule
from datamodules.sources import JsonLines, Source, TextFiles
from datamodules.stream import Replica
from datamodules.text import TextModality
from onn_lightning.batch import Batch, ModalityTokens, Segment
from onn_lightning.modality import BadSampleError, Modality

END = 256


class Bytes(Modality):
    """UTF-8 bytes as tokens: a text modality without a tokenizer."""

    name = "text"

    def encode(self, raw: Any) -> Segment:
        if "BAD" in raw:
            raise BadSampleError("the text says BAD; remove it")
        data = torch.tensor(list(raw.encode()), dtype=torch.int64)
        return Segment(self.name, data, targets=data)

    def closing_segment(self) -> Segment:
        end = torch.tensor([END])
        return Segment(self.name, end, targets=end)

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return nn.Embedding(END + 1, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module | None:
        return None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 texts of 5 to 700 bytes, and 40 captioned images of several shapes."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(f"<{number}>" + "x" * (number * 37 % 700))
    with (folder / "captions.jsonl").open("w") as file:
        for number in range(40):
            Image.new("L", (16 + 8 * (number % 3), 16), number).save(folder / f"{number}.png")
            items = [
                {"modality": "image", "path": f"{number}.png"},
                {"modality": "text", "text": f"[{number}]"},
            ]
            file.write(json.dumps({"items": items}) + "\n")
    return folder


def sources(corpus: Path) -> dict[str, Source]:
    return {"texts": TextFiles(corpus), "captions": JsonLines(corpus / "captions.jsonl", weight=0.5)}


def data(corpus: Path, **settings: Any) -> OmniDataModule:
    settings = {"train": sources(corpus), "validation": sources(corpus), "buffer_size": 32} | settings
    settings = {"row_length": 64, "rows_per_batch": 2} | settings
    return OmniDataModule([Bytes(), ImageModality(patch_size=8)], **settings)


def ready(corpus: Path, **settings: Any) -> OmniDataModule:
    module = data(corpus, **settings)
    module.setup("fit")
    return module


def take(iterator: Iterator[Batch], count: int) -> list[Batch]:
    return [next(iterator) for _ in range(count)]


def same(left: Batch, right: Batch) -> bool:
    """Bit-identical, part by part."""

    def parts(batch: Batch) -> list[torch.Tensor | None]:
        own: list[torch.Tensor | None] = [batch.modality_ids, batch.positions, batch.document_ids]
        for name in sorted(batch.modalities):
            own += vars(batch.modalities[name]).values()
        return own

    pairs = zip(parts(left), parts(right), strict=True)
    return left.source == right.source and all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs
    )


def bytes_of(tokens: ModalityTokens) -> bytes:
    return bytes(tokens.features[tokens.features != END].tolist())


def test_every_held_out_document_comes_exactly_once_and_batches_name_their_source(corpus: Path) -> None:
    module = ready(corpus)
    texts, captions = module.val_dataloader()
    supervised = 0
    for batch in texts:
        assert batch.source == "texts" and batch.modality_ids.shape == (2, 64)
        targets = batch.modalities["text"].targets
        assert targets is not None
        supervised += len(targets)
    expected = sum(len((corpus / f"{n:02}.txt").read_bytes()) for n in range(60))
    assert supervised == expected  # the end token is a target, the first byte is not
    seen: Counter[bytes] = Counter()
    for batch in captions:
        assert batch.source == "captions"
        tokens = batch.modalities["text"]
        documents = batch.document_ids.flatten()[tokens.indices] + 64 * (tokens.indices // 64)
        for document in documents.unique():
            chosen = tokens.features[documents == document]
            seen[bytes(chosen[chosen != END].tolist())] += 1
    assert seen == Counter(f"[{number}]".encode() for number in range(40))


def test_with_the_real_modalities_the_targets_of_a_held_out_set_spell_its_documents(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(8000) * 0.3), 8000)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    documents = [
        [{"modality": "image", "path": "red.png"}, {"modality": "text", "text": "红色的图。"}],
        [{"modality": "text", "text": "Listen: "}, {"modality": "audio", "path": "tone.wav"}],
        [{"modality": "text", "text": "人工智能 \u2028 and 🙂\x85 more. " * 9}],
    ]
    lines = [json.dumps({"items": items}) for items in documents]
    (tmp_path / "d.jsonl").write_text("\n".join(lines), "utf-8")
    text = TextModality(max_words=2000)
    held_out: dict[str, Source] = {"mixed": JsonLines(tmp_path / "d.jsonl")}
    modalities = [text, ImageModality(patch_size=8), AudioModality()]
    module = OmniDataModule(modalities, train={}, test=held_out, row_length=64, rows_per_batch=1)
    module.setup("test")
    batches = list(module.test_dataloader()[0])
    assert all(sorted(batch.modalities) == ["audio", "image", "text"] for batch in batches)
    spelled = "".join(
        text.tokenizer.decode(tokens.targets[tokens.targets != text.tokenizer.vocabulary.eos_id].tolist())
        for batch in batches
        if (tokens := batch.modalities["text"]).targets is not None
    )
    expected = "".join(item["text"] for items in documents for item in items if "text" in item)
    assert Counter(spelled) == Counter(expected)
    assert documents[2][0]["text"][:63] in spelled  # after <bos>, a row's worth


def test_held_out_batches_are_the_same_every_time_and_with_a_worker(corpus: Path) -> None:
    here, again = (list(ready(corpus).val_dataloader()[1]) for _ in range(2))
    worker = list(ready(corpus, num_workers=2).val_dataloader()[1])
    assert len(here) == len(again) == len(worker)
    assert all(same(a, b) and same(a, c) for a, b, c in zip(here, again, worker, strict=True))


@pytest.mark.parametrize("replicas", [2, 3, 7])
def test_ranks_share_the_held_out_batches_and_all_get_equally_many(corpus: Path, replicas: int) -> None:
    module = ready(corpus)
    whole = list(module.val_dataloader()[1])
    shares = []
    for number in range(replicas):
        loader = module.val_dataloader()[1]
        loader.stream.replica = Replica(number, replicas)
        shares.append(list(loader))
    assert len({len(share) for share in shares}) == 1
    together = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert all(map(same, whole, together))
    assert all(batch.num_tokens == 0 and "image" in batch.modalities for batch in together[len(whole) :])


def test_every_batch_holds_every_modality_even_without_tokens_of_it(corpus: Path) -> None:
    texts, _ = ready(corpus).val_dataloader()
    for batch in texts:
        assert sorted(batch.modalities) == ["image", "text"]
        assert len(batch.modalities["image"].indices) == 0


def test_a_modality_that_no_source_holds_is_absent_everywhere_and_said_so(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {"texts": TextFiles(corpus)}
    module = data(corpus, train=texts, validation=texts)
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert "no source for 'fit' holds modality 'image'" in caplog.text
    batch = next(iter(module.train_dataloader()))
    assert list(batch.modalities) == ["text"]
    assert batch.modality_ids.unique().tolist()[-1] == 1  # ids are those of all the run's modalities


def test_training_batches_follow_the_weights_and_are_nearly_without_padding(corpus: Path) -> None:
    module = ready(corpus, batches_per_epoch=300)
    tokens = images = captions = 0
    for batch in module.train_dataloader():
        tokens += batch.num_tokens
        images += len(batch.modalities["image"].indices)
        captions += bytes_of(batch.modalities["text"]).count(b"[")
    assert 1 - tokens / (300 * 2 * 64) <= 0.03
    caption_tokens = images + captions * 5 - captions // 4  # "[n]", "[nn]" and the end token
    assert abs(caption_tokens / tokens - 1 / 3) < 0.02
    assert set(module.bad_samples.values()) == {0}


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_resumed_loader_gives_bit_identical_batches_and_its_state_is_plain_data(
    corpus: Path, num_workers: int
) -> None:
    module = ready(corpus, num_workers=num_workers)
    uninterrupted = take(iter(module.train_dataloader()), 13)
    loader = module.train_dataloader()
    assert all(map(same, take(iter(loader), 5), uninterrupted))
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    resumed = ready(corpus, num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(map(same, take(iter(resumed), 8), uninterrupted[5:]))


def test_making_and_resuming_a_loader_leaves_the_global_random_state_alone(corpus: Path) -> None:
    module = ready(corpus)
    before = torch.get_rng_state()
    take(iter(module.train_dataloader()), 2)
    list(module.val_dataloader()[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_next_epoch_goes_on_where_the_last_one_stopped(corpus: Path) -> None:
    module = ready(corpus, batches_per_epoch=4)
    loader = module.train_dataloader()
    assert len(loader) == 4
    epochs = [*loader, *loader]
    whole = take(iter(ready(corpus, batches_per_epoch=8).train_dataloader()), 8)
    assert len(epochs) == 8 and all(map(same, epochs, whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, r"saved with seed = 0, now it is 5"),
        ({"row_length": 65}, r"saved with row_length = 64, now it is 65"),
    ],
)
def test_a_resume_over_other_settings_is_refused_with_both_values(
    corpus: Path, change: dict[str, Any], message: str
) -> None:
    loader = ready(corpus).train_dataloader()
    take(iter(loader), 2)
    other = ready(corpus, **change).train_dataloader()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(loader.state_dict())
        take(iter(other), 1)


class Recorder(LightningModule):
    """A model of one number that writes down what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []
        self.validated: Counter[str] = Counter()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight * batch.num_tokens

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated[batch.source] += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


@pytest.mark.parametrize("stopped_at", [4, 7, 10])
def test_a_trainer_resumed_from_a_checkpoint_sees_the_batches_it_would_have_seen(
    corpus: Path, tmp_path: Path, stopped_at: int
) -> None:
    """Stops inside the first epoch, inside the second, and (10 = 2 * 5) at the end of one."""

    def fit(max_steps: int, checkpoint: Path | None = None, validation: bool = True) -> Recorder:
        trainer = Trainer(
            max_steps=max_steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            callbacks=[ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=max_steps, save_top_k=-1)],
        )
        model = Recorder()
        module = data(corpus, batches_per_epoch=5, **({} if validation else {"validation": None}))
        trainer.fit(model, module, ckpt_path=checkpoint, weights_only=True)
        return model

    whole = fit(14, validation=False)
    first = fit(stopped_at)
    second = fit(14, tmp_path / f"step={stopped_at}.ckpt")
    assert len(whole.seen) == 14
    assert len(first.seen) == stopped_at and len(second.seen) == 14 - stopped_at
    assert all(map(same, whole.seen, first.seen + second.seen))
    assert set(first.validated | second.validated) == {"texts", "captions"} and not whole.validated


def write_texts(folder: Path, texts: list[str]) -> dict[str, Source]:
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    return {"texts": TextFiles(folder)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_skipped_counted_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], num_workers: int
) -> None:
    texts = write_texts(tmp_path, [f"good {n}" if n % 5 else f"BAD {n}" for n in range(50)])
    module = OmniDataModule(
        [Bytes()], train=texts, validation=texts, row_length=32, rows_per_batch=1, num_workers=num_workers
    )
    module.setup("fit")
    handler = logging.StreamHandler()  # forked workers write to the same standard error
    logging.getLogger("datamodules.bad_samples").addHandler(handler)
    try:
        batches = list(module.val_dataloader()[0])
        take(iter(module.train_dataloader()), 3)
    finally:
        logging.getLogger("datamodules.bad_samples").removeHandler(handler)
    assert module.bad_samples["validation/texts"] == 10
    assert module.bad_samples["train/texts"] > 10
    assert sum(bytes_of(batch.modalities["text"]).count(b"good") for batch in batches) == 40
    messages = capfd.readouterr().err
    assert f"{tmp_path / '005.txt'}: the text says BAD; remove it" in messages
    assert messages.count("skipped bad sample") < 40  # they thin out


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_of_bad_samples_stops_the_run_and_names_the_last(tmp_path: Path, num_workers: int) -> None:
    texts = write_texts(tmp_path, ["good", *["BAD"] * 8])
    settings: dict[str, Any] = {"row_length": 32, "rows_per_batch": 1, "num_workers": num_workers}
    module = OmniDataModule([Bytes()], train=texts, validation=texts, max_consecutive_bad=7, **settings)
    module.setup("fit")
    with pytest.raises(TooManyBadSamplesError, match=r"8 bad samples in a row.*008\.txt.*says BAD"):
        list(module.val_dataloader()[0])
    module = OmniDataModule([Bytes()], train=texts, validation=texts, max_consecutive_bad=8, **settings)
    module.setup("fit")
    assert len(list(module.val_dataloader()[0])) == 1


def test_a_corpus_that_cannot_be_used_at_all_is_refused_at_setup(tmp_path: Path) -> None:
    missing: dict[str, Source] = {"texts": TextFiles(tmp_path / "none")}
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        OmniDataModule([Bytes()], train=missing).setup("fit")
    bad = write_texts(tmp_path, ["BAD"] * 3)
    with pytest.raises(ValueError, match=r"no sample of modality 'text' can be used; the last: .*BAD"):
        OmniDataModule([Bytes()], train=bad).setup("fit")
    with pytest.raises(ValueError, match="no training source"):
        OmniDataModule([Bytes()], train={}).setup("fit")
    OmniDataModule([Bytes()], train=missing, validation=write_texts(tmp_path, ["good"])).setup("validate")


def test_settings_out_of_range_and_equal_names_are_refused() -> None:
    with pytest.raises(ValueError, match="`row_length` must be at least 2, got 1"):
        OmniDataModule([Bytes()], train={}, row_length=1)
    with pytest.raises(ValueError, match="share a name"):
        OmniDataModule([Bytes(), Bytes()], train={})
    with pytest.raises(RuntimeError, match="call `setup"):
        OmniDataModule([Bytes()], train={}).train_dataloader()


def run_in_processes(count: int, task: Callable[..., None], *args: Any) -> None:
    """Run `task(number, *args)` in that many processes; fails if one fails or hangs.

    In processes of their own, too, because torch reports a lost worker by an exception out of a signal
    handler: it may come at any moment of the process that owns the worker.
    """
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=task, args=(number, *args)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def _lose_a_worker(number: int, corpus: Path) -> None:
    iterator = iter(ready(corpus, num_workers=1).train_dataloader())
    next(iterator)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    reports = []
    try:
        try:
            os.kill(worker.pid, signal.SIGKILL)
            take(iterator, 20)
        except RuntimeError as error:
            reports.append(str(error))
    except RuntimeError as error:  # the signal came while the loader's own report was on its way
        reports.append(str(error))
    os._exit(0 if reports and all("DataLoader worker" in report for report in reports) else 1)


def test_a_killed_worker_is_reported_as_such_and_hangs_nothing(corpus: Path) -> None:
    run_in_processes(1, _lose_a_worker, corpus)


def _rank(number: int, corpus: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    module = ready(corpus)
    module._replica = lambda: Replica(number, 2)  # type: ignore[method-assign]
    loader = module.train_dataloader()
    batches = take(iterator := iter(loader), 3)
    state = loader.state_dict()
    following = take(iterator, 3)
    if number == 0:
        torch.save(state, folder / "state.pt")
    dist.barrier()
    resumed = module.train_dataloader()
    resumed.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    assert all(map(same, take(iter(resumed), 3), following))
    torch.save([bytes_of(batch.modalities["text"]) for batch in batches], folder / f"rank{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_state_that_rank_zero_saves_resumes_every_rank(corpus: Path, tmp_path: Path) -> None:
    run_in_processes(2, _rank, corpus, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{number}.pt", weights_only=True) for number in range(2))
    assert first != second


def test_memory_stays_bounded_by_the_buffer_however_many_documents_pass(corpus: Path) -> None:
    module = ready(corpus)
    loader = module.train_dataloader()
    for _ in islice(loader, 200):
        (place,) = loader.state_dict()["places"]
        assert all(len(column) <= 32 for column in place["buffered"])
        assert [len(source["lanes"]) for source in place["sources"].values()] == [1, 1]
