"""A batch never holds more pixels than its budget; what would exceed it comes later, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import STRIDE, Numbered, targets_of
from torch import nn

from datamodules.audio import AudioModality
from datamodules.image import ImageModality
from datamodules.omni import OmniDataModule
from datamodules.packing import PixelBudget, split_document
from datamodules.sources import Source
from datamodules.stream import Replica
from onn_lightning.batch import Batch, Segment
from onn_lightning.document import Document
from onn_lightning.modality import BadSampleError, Modality

Item = tuple[str, int]  # modality and tokens


class Squares(Modality):
    """(number, tokens) -> that many patches of ten pixels."""

    name = "image"

    def encode(self, raw: Any) -> Segment:
        places = torch.arange(raw[1])
        return Segment(self.name, torch.full((raw[1], 10), raw[0]), torch.stack([places, places], 1))

    def build_embedder(self, hidden_size: int) -> nn.Module:
        return nn.Linear(10, hidden_size)

    def build_head(self, hidden_size: int) -> nn.Module | None:
        return None


class Interleaved(Source):
    """Documents of runs of text and images; all numbers of a document's tokens are its own."""

    def __init__(self, documents: list[list[Item]], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        place = index * STRIDE
        items: list[tuple[str, Any]] = []
        for modality, length in self.documents[index]:
            items.append((modality, (place, length)))
            place += length
        return items

    def describe(self, index: int) -> str:
        return f"document {index}"

    def indices_with(self, modality: str) -> Iterator[int]:
        return iter([n for n, items in enumerate(self.documents) if any(m == modality for m, _ in items)])


def pixels_of(batch: Batch) -> int:
    image = batch.modalities.get("image")
    return 0 if image is None else image.features.numel()


def images_of(batch: Batch) -> Counter[int]:
    """Patches by the number of their image; context is not told apart."""
    return Counter(batch.modalities["image"].features[:, 0].tolist())


def module_of(train: dict[str, Source], budget: int | None, **settings: Any) -> OmniDataModule:
    settings = {"row_length": 16, "rows_per_batch": 3, "buffer_size": 16} | settings
    module = OmniDataModule(
        [Numbered(), Squares()], train, validation=train, max_pixels_per_batch=budget, **settings
    )
    module.setup("fit")
    return module


DOCUMENTS = st.lists(
    st.lists(
        st.one_of(
            st.tuples(st.just("text"), st.integers(1, 40)), st.tuples(st.just("image"), st.integers(1, 9))
        ),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=25,
)


@given(DOCUMENTS, st.integers(100, 300), st.integers(1, 3))
@settings(max_examples=25)
def test_no_batch_exceeds_the_budget_and_every_document_comes(
    documents: list[list[Item]], budget: int, ranks: int
) -> None:
    documents = [[("text", 3), ("image", 2)], *documents]
    source: dict[str, Source] = {"all": Interleaved(documents)}
    module = module_of(source, budget)
    held_out: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for number in range(ranks):
        loader = module.val_dataloader()[0]
        loader.stream.replica = Replica(number, ranks)
        for batch in loader:
            assert pixels_of(batch) <= budget
            held_out.update(targets_of(batch))
            images.update(images_of(batch))
    texts = [
        range(index * STRIDE + sum(length for _, length in items[:place]), index * STRIDE + 10**9)[:length]
        for index, items in enumerate(documents)
        for place, (modality, length) in enumerate(items)
        if modality == "text"
    ]
    assert held_out == Counter(n for numbers in texts for n in numbers if n % STRIDE)
    total = sum(length for items in documents for modality, length in items if modality == "image")
    assert images.total() >= total and module.bad_samples["validation/all"] == 0
    trained: Counter[int] = Counter()
    loader = module.train_dataloader()
    for batch in islice(loader, 60):
        assert pixels_of(batch) <= budget
        trained.update(targets_of(batch))
    assert trained.keys() <= held_out.keys()


def test_with_a_budget_that_suffices_on_average_rows_stay_full() -> None:
    mixed: list[list[Item]] = [
        [("image", 9), ("text", 3 + n % 7)] if n % 3 else [("text", 3 + n % 90)] for n in range(300)
    ]

    def batches_of(budget: int | None) -> list[Batch]:
        module = module_of({"all": Interleaved(mixed)}, budget, buffer_size=128, row_length=128)
        return list(islice(module.train_dataloader(), 240))[40:]  # once the buffer has settled

    free = batches_of(None)
    mean = sum(map(pixels_of, free)) / len(free)
    assert max(map(pixels_of, free)) > 1.25 * mean
    bounded = batches_of(int(1.25 * mean))
    assert max(map(pixels_of, bounded)) <= 1.25 * mean
    assert sum(map(pixels_of, bounded)) > 0.97 * sum(map(pixels_of, free))  # no image is left behind
    for batches in (free, bounded):
        assert sum(batch.num_tokens for batch in batches) >= 0.97 * len(batches) * 3 * 128


def test_a_resumed_run_defers_the_same_pieces() -> None:
    mixed = [[("image", 9), ("text", 5)] if n % 2 else [("text", 10 + n % 90)] for n in range(60)]
    loader = module_of({"all": Interleaved(mixed)}, 150).train_dataloader()
    for _ in islice(loader, 9):
        pass
    resumed = module_of({"all": Interleaved(mixed)}, 150).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    for here, there in zip(islice(loader, 9), resumed, strict=False):
        assert targets_of(here) == targets_of(there) and images_of(here) == images_of(there)
    other = module_of({"all": Interleaved(mixed)}, 160).train_dataloader()
    with pytest.raises(ValueError, match="max_pixels_per_batch = 150, now it is 160"):
        other.load_state_dict(loader.state_dict())


def test_a_medium_beyond_the_budget_is_a_bad_sample_with_the_numbers() -> None:
    budget = PixelBudget(50, {"image": Squares(), "text": Numbered()})
    text, image = Numbered().encode((0, 3)), Squares().encode((0, 6))
    with pytest.raises(BadSampleError, match=r"'image' has 60 pixels .* may hold 50.*`max_pixels_per_batch`"):
        split_document([text, image], 16, budget)
    module = module_of({"all": Interleaved([[("image", 2), ("text", 4)], [("image", 6)]])}, 50)
    list(module.val_dataloader()[0])
    assert module.bad_samples["validation/all"] == 1


def test_a_document_of_many_media_is_cut_between_them() -> None:
    budget = PixelBudget(50, {"image": Squares(), "text": Numbered()})
    segments = [Squares().encode((number, 3)) for number in range(4)]
    pieces = split_document(segments, 64, budget)
    assert [piece.pixels for piece in pieces] == [30, 40, 40, 40]
    assert [len(piece) for piece in pieces] == [3, 4, 4, 4]  # each with the token before it
    assert len(split_document(segments, 64)) == 1


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_without_pixels_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="`max_pixels_per_batch` must be at least 1, or None"):
        OmniDataModule([Numbered()], {}, max_pixels_per_batch=budget)


def test_images_count_pixels_and_sounds_count_cells() -> None:
    image, audio = ImageModality(patch_size=8, channels=3), AudioModality(patch_time=4, patch_freq=16)
    assert image.pixels(image.placeholder()) == 64
    sound = audio.placeholder()
    assert audio.pixels(sound) == 64 * len(sound)
    assert Numbered().pixels(Numbered().placeholder()) == 0
