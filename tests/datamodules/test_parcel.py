"""Batches come out of loader workers in one piece of shared memory, and as they went in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from datamodules import AudioModality, ImageModality, JsonLines, OmniDataModule, TextModality
from datamodules.parcel import Parcel
from onn_lightning.batch import Batch


def tensors_of(batch: Batch) -> list[Tensor]:
    tensors: list[Tensor] = []
    batch.map(lambda tensor: tensors.append(tensor) or tensor)
    return tensors


def corpus(folder: Path) -> JsonLines:
    Image.new("RGB", (20, 9), "red").save(folder / "1.png")
    noise = np.random.default_rng(0).normal(size=8000) * 0.1
    soundfile.write(folder / "1.wav", noise, 16_000)
    records = [
        [{"modality": "text", "text": f"only text {number}"}] if number % 2 else
        [
            {"modality": "image", "path": "1.png"},
            {"modality": "audio", "path": "1.wav", "supervised": False},
            {"modality": "text", "text": f"红 {number}"},
        ]
        for number in range(9)
    ]  # fmt: skip
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"items": items}) + "\n" for items in records))
    return JsonLines(path)


def test_a_worker_sends_what_the_main_process_would_have_made_in_one_buffer(tmp_path: Path) -> None:
    source = corpus(tmp_path)
    batches = []
    for num_workers in (0, 1):
        module = OmniDataModule(
            [TextModality(max_words=50), ImageModality(patch_size=8), AudioModality()],
            train={"all": source},
            row_length=48,
            rows_per_batch=2,
            buffer_size=4,
            num_workers=num_workers,
        )
        module.setup("fit")
        loader = iter(module.train_dataloader())
        batches.append([next(loader) for _ in range(6)])
    for made, sent in zip(*batches, strict=True):
        assert sorted(made.modalities) == ["audio", "image", "text"] and made.source == sent.source
        pairs = list(zip(tensors_of(made), tensors_of(sent), strict=True))
        assert len(pairs) > 12
        for before, after in pairs:
            assert before.dtype == after.dtype and torch.equal(before, after)
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors_of(sent)}) == 1
        assert sent.modalities["text"].features.untyped_storage().is_shared()


def test_empty_tensors_and_every_type_survive() -> None:
    types = (torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float64, torch.int64)
    ones = [torch.ones(3, 5, dtype=dtype) for dtype in types]
    for features in (*ones, torch.zeros(0, 7)):
        batch = Batch(features, torch.arange(6).view(2, 3), torch.zeros(2, 0, dtype=torch.int64))
        for before, after in zip(tensors_of(batch), tensors_of(Parcel.of(batch).batch()), strict=True):
            assert before.dtype == after.dtype and before.shape == after.shape and torch.equal(before, after)
