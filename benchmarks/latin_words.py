"""When a run of letters should get its word id: while it is written, or once it is over.

- prefix (the product): every letter has the id of the longest known word that the run so far begins with;
- end: no letter has an id; the run's word is known at the first character after it, as the word before;
- hashed (option `hashed_words`): as prefix, but what is no known word has the bucket of its hash.

Each trains the small model of `quality.py` on the texts of the quickstart, half of the tokens Chinese, half
English: same batches, same budget, several seeds. Held-out bits per byte; what is compared is English.

    OMP_NUM_THREADS=1 python benchmarks/latin_words.py --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from quality import EMBEDDING_SIZE, Corpus, corpus_vocabulary, read_corpus, run
from torch import Tensor

from datamodules.text import TextModality
from datamodules.text.corpus import RUN

HASHED_WORDS = 4_096


def given_at_the_end(corpus: Corpus, modality: TextModality) -> Corpus:
    """The corpus with the word ids of letters taken away."""
    is_letter = torch.tensor(
        [RUN.fullmatch(token) is not None for token in modality.tokenizer.vocabulary.tokens]
    )

    def without(features: Tensor) -> Tensor:
        return torch.cat(
            [features[:, :1], features[:, 1:2].masked_fill(is_letter[features[:, :1]], 0), features[:, 2:]],
            dim=1,
        )

    return Corpus(
        *({name: without(part) for name, part in split.items()} for split in (corpus.train, corpus.held_out))
    )


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--variants", nargs="+", default=["prefix", "end", "hashed"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    folder = tempfile.TemporaryDirectory()
    entrance: dict[str, Any] = {
        "vocabulary": corpus_vocabulary(arguments.data, Path(folder.name)),
        "words": str(arguments.data / "words.txt"),
        "embedding_size": EMBEDDING_SIZE,
    }
    prefix, hashed = TextModality(**entrance), TextModality(**entrance, hashed_words=HASHED_WORDS)
    corpus = read_corpus(arguments.data, prefix)
    variants = {
        "prefix": (prefix, corpus),
        "end": (prefix, given_at_the_end(corpus, prefix)),
        "hashed": (hashed, read_corpus(arguments.data, hashed)),
    }
    figures: dict[str, dict[str, list[float]]] = {name: {"en": [], "zh": []} for name in arguments.variants}
    for seed in arguments.seeds:
        arguments.seed = seed
        for name in arguments.variants:
            modality, read = variants[name]
            result = run(arguments, read, modality, lr=arguments.lr)
            for language, values in figures[name].items():
                values.append(result["bits_per_byte"][language])
            if not arguments.json:
                print(json.dumps({"variant": name, "seed": seed, **result}), flush=True)
    summary = {
        name: {language: statistics.mean(values) for language, values in by_language.items()}
        for name, by_language in figures.items()
    }
    print(
        json.dumps(
            {"bits_per_byte": figures, "mean": summary, "steps": arguments.steps, "seeds": arguments.seeds},
            indent=None if arguments.json else 1,
        )
    )


if __name__ == "__main__":
    main()
