"""The data pipeline against its targets: every figure of the table in RESULTS.md, from one command.

Each part is a file of its own (`data_tokenizer.py`, `data_windows.py`, `data_prepare.py`, `data_loader.py`,
`data_media.py`) that compares within one process, in turn, and gives medians of ratios; this file runs
them one after the other, sets each figure beside its target, and names the misses. Text is that of the
quickstart (`onn fetch quickstart`).

    python benchmarks/data.py --json
    python benchmarks/data.py --part windows --part loader
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# the parts are imported from the repository's root, as its tests and readers do
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data_loader, data_media, data_prepare, data_tokenizer, data_windows

QUICKSTART_TOKENS_PER_SECOND = 2_700
"""What the quickstart's trunk consumes on two cores (RESULTS.md)."""
TOKENIZER_CHARACTERS, TOKENIZER_ROUNDS = 200_000, 7


@dataclass(frozen=True)
class Figure:
    """One measured figure and what it should be.

    Args:
        name: what was measured.
        value: the figure.
        least, most: the target; None: none on that side.
    """

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.least is None and self.most is None:
            return None
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)


def tokenizer(data: Path) -> list[Figure]:
    """The dual tokenizer against jieba, rjieba, Unigram and BPE; agreement with jieba."""
    figures = []
    for language, targets in data_tokenizer.TARGETS.items():
        documents = data_tokenizer.read_documents(data, language, TOKENIZER_CHARACTERS)
        speed = data_tokenizer.measure(documents, TOKENIZER_ROUNDS)
        figures.append(Figure(f"{language}, characters a second", speed.characters_per_second))
        figures += [
            Figure(f"{language}, times as fast as {rival}", speed.times_as_fast[rival], least=target)
            for rival, target in targets.items()
        ]
    sentences = data_tokenizer.sentences_of(data_tokenizer.read_documents(data, "chinese", 10**9))
    agreement = data_tokenizer.agreement(sentences)
    return [*figures, Figure("sentences segmented as jieba does", agreement, least=0.999)]


def windows(data: Path) -> list[Figure]:
    """Random windows of prepared shards against a bare memmap."""
    speed = data_windows.measure_windows(_texts(data))
    return [
        Figure("windows of 2,048 tokens, over a bare memmap (three columns)", speed.ratio, least=0.7),
        Figure("the same, char ids alone", speed.character_ratio, least=0.7),
        Figure("bytes a character on disk", speed.bytes_per_character, most=6.0),
    ]


def prepare(data: Path) -> list[Figure]:
    """Peak memory and throughput of `onn prepare`."""
    runs = data_prepare.compare()
    return [
        Figure("onn prepare, peak memory of a corpus twice as large", runs.memory_ratio, most=1.10),
        Figure("onn prepare, peak memory, MB, all processes", runs.twice.peak_mb),
        Figure("onn prepare, MB a second", runs.twice.mb_per_second),
    ]


def loader(data: Path) -> list[Figure]:
    """Throughput, padding and resume of the training loader."""
    speed = data_loader.measure_throughput(_texts(data))
    padding = data_loader.measure_padding(_texts(data))
    resume = data_loader.measure_resume()
    quickstart = QUICKSTART_TOKENS_PER_SECOND
    return [
        *(
            Figure(f"one worker, {kind} documents, times what the quickstart eats", value / quickstart, 50.0)
            for kind, value in vars(speed).items()
        ),
        *(
            Figure(f"padding, {kind} documents", value, most=0.03 if kind != "whole" else None)
            for kind, value in vars(padding).items()
        ),
        Figure("seconds to the first batch, new run", resume.begun),
        Figure("seconds to the first batch, resumed amid 10^8 documents", resume.middle, most=5.0),
        Figure("the same with another number of readers", resume.other_readers, most=5.0),
    ]


def media(data: Path) -> list[Figure]:
    """Images and clips a second against bare Pillow and bare soundfile + mel."""
    return [
        Figure(f"{name}, over bare", comparison.ratio, least=None if name.endswith("_draft") else 0.85)
        for name, comparison in data_media.measure().items()
    ]


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    part.__name__: part for part in (tokenizer, windows, prepare, loader, media)
}


def _texts(data: Path) -> list[Path]:
    texts = sorted(data.glob("train/*/*.txt"))
    if not texts:
        raise FileNotFoundError(f"{data}: no texts; run `onn fetch quickstart`")
    return texts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="repeatable; default: all")
    parser.add_argument("--data", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    results = {part: PARTS[part](arguments.data) for part in arguments.part or PARTS}
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    if arguments.json:
        rows = {
            part: [{**vars(figure), "met": figure.met} for figure in figures]
            for part, figures in results.items()
        }
        print(json.dumps({"machine": machine, **rows}, indent=1))
        return
    print(machine)
    for part, figures in results.items():
        print(f"\n{part}")
        for figure in figures:
            bound = f">= {figure.least:g}" if figure.least is not None else ""
            bound = f"<= {figure.most:g}" if figure.most is not None else bound
            verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
            print(f"  {figure.name:62}{figure.value:14.4g}  {bound:10}{verdict}")


if __name__ == "__main__":
    main()
