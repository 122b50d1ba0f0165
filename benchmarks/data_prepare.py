"""`onn prepare`: peak memory on a corpus and on one twice as large, and throughput, of real processes.

    python benchmarks/data_prepare.py [--megabytes 64] [--workers 2] [--json]

Notable:
- The corpus is generated JSON Lines, half Chinese, half English, with 5 % copies and some broken lines; both
  sizes have tasks of the same size, so that only what grows with the corpus shows.
- Memory is the largest sum of the resident private pages of all processes of the run (Pss from
  /proc/*/smaps_rollup where there is one), sampled twenty times a second: pages that the workers share with
  the fork server count once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MB = 1_000_000
_TASK_BYTES = 4 * MB
_SAMPLE_SECONDS = 0.05
_HAN = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
_WORDS = ["the", "of", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with"]


@dataclass(frozen=True)
class Prepared:
    """One run.

    Args:
        corpus_mb: size of the corpus.
        seconds: of the whole command.
        mb_per_second: corpus over seconds.
        peak_mb: memory of all its processes together.
    """

    corpus_mb: float
    seconds: float
    mb_per_second: float
    peak_mb: float


@dataclass(frozen=True)
class Comparison:
    """A corpus, and one twice as large.

    Args:
        once, twice: the two runs.
        memory_ratio: peak of the second over that of the first; at most 1.1 is asked for.
    """

    once: Prepared
    twice: Prepared
    memory_ratio: float


def compare(megabytes: int = 64, workers: int = 2) -> Comparison:
    """Prepare a corpus and one twice as large.

    Args:
        megabytes: of the smaller one.
        workers: processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="onn-prepare-"))
    try:
        write_corpus(folder / "warm.jsonl", MB)
        _measured(folder / "warm.jsonl", folder / "warm", workers)  # compiles, fills caches
        runs = []
        for factor in (1, 2):
            corpus = folder / f"{factor}.jsonl"
            write_corpus(corpus, factor * megabytes * MB)
            runs.append(_measured(corpus, folder / f"out{factor}", workers))
        return Comparison(runs[0], runs[1], runs[1].peak_mb / runs[0].peak_mb)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_corpus(path: Path, size: int) -> None:
    """Generate JSON Lines of about a size in bytes, the same for the same size."""
    numbers = random.Random(size)
    recent: list[str] = []
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            if recent and numbers.random() < 0.05:
                text = numbers.choice(recent)
            elif numbers.random() < 0.5:
                text = "，".join("".join(numbers.choices(_HAN, k=12)) for _ in range(60)) + "。"
            else:
                text = " ".join(numbers.choices(_WORDS, k=300)) + "."
            recent = [*recent[-20:], text]
            line = "{broken\n" if numbers.random() < 0.001 else json.dumps({"text": text}) + "\n"
            written += file.write(line)  # ASCII: \u escapes


def _measured(corpus: Path, output: Path, workers: int) -> Prepared:
    readers = "datamodules.prepare.readers"
    init_args = {"path": str(corpus), "unit_bytes": _TASK_BYTES}
    config = {
        "output": str(output),
        "sources": {"text": {"class_path": f"{readers}.JsonLinesReader", "init_args": init_args}},
        "filters": [
            {"class_path": f"datamodules.prepare.filters.{name}"}
            for name in ("LanguageFilter", "LengthFilter", "SymbolFilter")
        ],
        "deduplication": {},
        "task_bytes": _TASK_BYTES,
    }
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "onn_lightning", "prepare", "--config", str(path)]
    begun = time.monotonic()
    run = subprocess.Popen(
        [*command, "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    peak = 0
    while run.poll() is None:
        peak = max(peak, _memory_of_session(run.pid))
        time.sleep(_SAMPLE_SECONDS)
    seconds = time.monotonic() - begun
    assert run.stderr is not None
    if run.returncode:
        raise RuntimeError(f"onn prepare failed: {run.stderr.read().decode()}")
    size = corpus.stat().st_size / MB
    return Prepared(size, seconds, size / seconds, peak / MB)


def _memory_of_session(session: int) -> int:
    """Bytes of all processes of a session."""
    total = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
                if int(stat.rpartition(")")[2].split()[3]) == session:
                    total += _resident(int(entry))
            except (OSError, ValueError, IndexError):  # it has just ended
                continue
    return total


def _resident(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = compare(options.megabytes, options.workers)
    if options.json:
        print(json.dumps(asdict(result)))
        return
    for run in (result.once, result.twice):
        speed = f"{run.seconds:.1f} s, {run.mb_per_second:.1f} MB/s"
        print(f"{run.corpus_mb:.0f} MB: {speed}, peak memory {run.peak_mb:.0f} MB")
    print(f"memory for twice the corpus: {result.memory_ratio:.3f} times")


if __name__ == "__main__":
    main()
