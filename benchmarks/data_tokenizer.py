"""The dual tokenizer on one core against jieba, rjieba and Hugging Face's `tokenizers`.

One pass of ours gives char ids and causal, previous and full-context word ids; the others give their one
segmentation. All read the same documents in turn within one process (A B C ... A B C ...), each twice, of
which the second counts. Figures are medians of the ratios of the rounds, of the CPU time of the whole
process, so that neither a drifting nor a busy machine decides. Only one thread works
(`TOKENIZERS_PARALLELISM=false`), and the CPU time would show it if one did not.

- jieba: `cut(HMM=False)`; rjieba: `cut(hmm=False)`, jieba in Rust;
- Unigram: `tokenizers` with jieba's words and probabilities, `encode_batch`;
- BPE: `tokenizers`, 30,000 merges trained on the same documents, byte level with its usual
  splitting into words, `encode_batch`.

Text is that of the quickstart (`onn fetch quickstart`): Chinese prose, English plays.

    python benchmarks/data_tokenizer.py --json
    python benchmarks/data_tokenizer.py --part agreement --json
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from datamodules.text import DualTokenizer
from datamodules.text.words import WordList, jieba_dictionary
from onn_lightning.cli.allocator import keep_freed_memory

LANGUAGES = {"chinese": "zh", "english": "en"}
BPE_VOCABULARY = 30_000
RIVALS = ("jieba", "rjieba", "unigram", "bpe")
TARGETS = {
    "chinese": {"jieba": 60.0, "rjieba": 3.0, "unigram": 15.0, "bpe": 15.0},
    "english": {"jieba": 100.0, "rjieba": 1.5, "unigram": 10.0, "bpe": 10.0},
}
_HAN_ON_BOTH_SIDES = re.compile("[\u4e00-\u9fd5]{2}")
_SENTENCE = re.compile(r"[^。！？；\n]+[。！？；\n]*")


@dataclass(frozen=True)
class Speed:
    """What one language came to.

    Args:
        characters_per_second: of ours, median.
        times_as_fast: by rival, median of the ratios of the rounds.
        characters: of the documents.
    """

    characters_per_second: float
    times_as_fast: dict[str, float]
    characters: int


def read_documents(data: Path, language: str, characters: int) -> list[str]:
    """Documents of the quickstart's training text, in the order of their names, up to so many characters."""
    files = sorted((data / "train" / LANGUAGES[language]).glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"{data}: no texts for {language}; run `onn fetch quickstart`")
    documents: list[str] = []
    for file in files:
        missing = characters - sum(map(len, documents))
        if missing <= 0:
            break
        documents.append(file.read_text(encoding="utf-8")[:missing])
    return documents


def measure(documents: Sequence[str], rounds: int, cold: bool = False) -> Speed:
    """Time all tokenizers in turn over the same documents.

    Args:
        documents: texts of one language.
        rounds: how often.
        cold: begin each turn on caches that the others have filled.
    """
    contestants = {"ours": _ours(), "jieba": _jieba(), "rjieba": _rjieba()}
    contestants |= {"unigram": _unigram(), "bpe": _bpe(documents)}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            if not cold:
                run(documents)  # what the others left in the processor's caches is not to be measured
            start = time.process_time()
            run(documents)
            times[name].append(time.process_time() - start)
    ours = times["ours"]
    characters = sum(map(len, documents))
    ratios = {
        name: statistics.median(theirs / own for theirs, own in zip(times[name], ours, strict=True))
        for name in RIVALS
    }
    return Speed(characters / statistics.median(ours), ratios, characters)


def agreement(sentences: Sequence[str]) -> float:
    """Share of sentences whose words end at the same places between Han characters as jieba's."""
    tokenizer, cutter = DualTokenizer(), _jieba_cutter()

    def ends(words: Sequence[str], text: str) -> set[int]:
        places = np.cumsum([len(word) for word in words]).tolist()
        return {place for place in places if _HAN_ON_BOTH_SIDES.match(text[place - 1 : place + 1])}

    equal = sum(
        ends(tokenizer.segment(text), text) == ends(cutter.lcut(text, HMM=False), text) for text in sentences
    )
    return equal / len(sentences)


def sentences_of(documents: Sequence[str]) -> list[str]:
    """The sentences of documents, punctuation included."""
    return [sentence for text in documents for sentence in _SENTENCE.findall(text)]


def _ours() -> Callable[[Sequence[str]], object]:
    tokenizer = DualTokenizer()

    def run(documents: Sequence[str]) -> None:
        for text in documents:
            tokenizer.encode(text).full_context_word_ids()

    return run


def _jieba_cutter() -> Any:
    import jieba

    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    cutter.initialize()
    return cutter


def _jieba() -> Callable[[Sequence[str]], object]:
    cutter = _jieba_cutter()

    def run(documents: Sequence[str]) -> None:
        for text in documents:
            cutter.lcut(text, HMM=False)

    return run


def _rjieba() -> Callable[[Sequence[str]], object]:
    import rjieba

    def run(documents: Sequence[str]) -> None:
        for text in documents:
            rjieba.cut(text, hmm=False)

    return run


def _unigram() -> Callable[[Sequence[str]], object]:
    from tokenizers import Tokenizer, models

    words = WordList.read(jieba_dictionary())
    log_total = math.log(sum(words.counts))
    scored = [
        (word, math.log(count) - log_total) for word, count in zip(words.words, words.counts, strict=True)
    ]
    tokenizer = Tokenizer(models.Unigram([("<unk>", -log_total), *scored], unk_id=0))
    return lambda documents: tokenizer.encode_batch(list(documents), add_special_tokens=False)


def _bpe(documents: Sequence[str]) -> Callable[[Sequence[str]], object]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    return lambda documents: tokenizer.encode_batch(list(documents), add_special_tokens=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("speed", "agreement"), default="speed")
    parser.add_argument("--data", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--characters", type=int, default=500_000, help="of each language")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="no reading before a turn that is timed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `onn` itself does

    result: dict[str, object] = {}
    if arguments.part == "agreement":
        sentences = sentences_of(read_documents(arguments.data, "chinese", 10**9))
        result = {"sentences": len(sentences), "equal_to_jieba": agreement(sentences), "target": 0.999}
    else:
        for language in LANGUAGES:
            speed = measure(
                read_documents(arguments.data, language, arguments.characters),
                arguments.rounds,
                arguments.cold,
            )
            result[language] = {
                "characters": speed.characters,
                "characters_per_second": round(speed.characters_per_second),
                "times_as_fast": {name: round(ratio, 2) for name, ratio in speed.times_as_fast.items()},
                "targets": TARGETS[language],
            }
    print(json.dumps(result, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
