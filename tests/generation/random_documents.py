"""Random documents of text, pictures and sound, and the model's answer without a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from datamodules.packing import Collator, Piece, prototype_of
from onn_lightning import OmniModule
from onn_lightning.batch import Batch, Segment
from onn_lightning.modality import Modality


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(samples: int, seed: int) -> tuple[np.ndarray, int]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32), 8000


texts = st.text(alphabet=st.sampled_from("abcd 人工智能的时代\n🙂é\0"), max_size=12)
seeds = st.integers(0, 1000)
pictures = st.builds(picture, st.integers(1, 15), st.integers(1, 15), seeds)
sounds = st.builds(sound, st.integers(400, 3000), seeds)
media = st.tuples(st.just("image"), pictures) | st.tuples(st.just("audio"), sounds)
documents = st.lists(st.tuples(st.just("text"), texts) | media, max_size=5)


def packed(segments: list[Segment], modalities: dict[str, Modality]) -> Batch:
    """The row that training would read."""
    prototypes = {segment.modality: prototype_of(segment) for segment in segments}
    length = sum(map(len, segments))
    return Collator(prototypes, list(modalities), length, 1)([[Piece(tuple(segments))]])


@torch.no_grad()
def uncached_logits(module: OmniModule, segments: list[Segment]) -> torch.Tensor:
    """[T, V] logits of one forward pass over the whole document."""
    weight = next(module.parameters())
    segments = [
        replace(segment, features=segment.features.to(weight.dtype), targets=None)
        if segment.features.is_floating_point()
        else segment
        for segment in segments
    ]
    batch = packed(segments, module.modalities)
    head: Any = module.heads["text"]
    return head.logits(module(batch).hidden[0])
