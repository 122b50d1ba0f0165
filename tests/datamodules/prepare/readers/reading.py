"""What the tests of all readers share: reading a corpus whole, and a child process with bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from datatrove.data import Document

from datamodules.prepare.document import Item, unpack
from datamodules.prepare.readers import BadSample, Reader

REPOSITORY = Path(__file__).parents[4]


def read_samples(reader: Reader, source: str = "s") -> list[Document | BadSample]:
    """Everything, in the order of the plan."""
    return [sample for unit in reader.plan() for sample in reader.read(unit, source)]


def read_documents(reader: Reader) -> list[Document]:
    """A corpus in which nothing is bad."""
    samples = read_samples(reader)
    assert not [sample for sample in samples if isinstance(sample, BadSample)]
    return [sample for sample in samples if isinstance(sample, Document)]


def read_texts(reader: Reader) -> list[str]:
    """The texts of the good documents."""
    return [sample.text for sample in read_samples(reader) if isinstance(sample, Document)]


def bad_samples(reader: Reader) -> list[tuple[str, str]]:
    """(where, kind) of what is bad."""
    return [(each.where, each.kind) for each in read_samples(reader) if isinstance(each, BadSample)]


def items(document: Document) -> list[tuple[str, object]]:
    """(modality, data) of each item."""
    return [(item.modality, _data(item)) for item in unpack(document)]


def _data(item: Item) -> object:
    return next((each for each in (item.text, item.media) if each is not None), item.value)


def grown_megabytes(code: str) -> float:
    """By how much the peak memory of a child process grows while it runs some code.

    Args:
        code: Python; readers are imported before the growth is measured.
    """
    program = (
        "from datamodules.prepare.readers import *\n"
        # not getrusage: its peak begins with that of the process that started this one
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        f"before = peak()\n{code}\nprint('GROWN', (peak() - before) / 1024)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return float(finished.stdout.split("GROWN")[1])
