"""`onn tokenizer`: an inventory and a word list for a corpus, what they do to it, a look at one string.

Notable:
- Corpora are whatever `onn prepare` reads, found out by looking: texts, JSON Lines, Parquet, tar shards, each
  also compressed. One document at a time is in memory.
- Bad samples are skipped, counted and named, as everywhere; a run of them stops the job.
- What is built appears under its name complete: written beside, then renamed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onn_lightning.cli.arguments import VerbParser
from onn_lightning.cli.errors import UsageError, nearest
from onn_lightning.cli.tokenizer_look import (
    add_tokenizer_options,
    decode,
    encode,
    make_tokenizer,
    positive,
    show,
    shown,
)

if TYPE_CHECKING:
    from datamodules.text.corpus import CorpusCounter, Tally

HELP = """\
usage: onn tokenizer ACTION [options]

Characters and words: made for a corpus, measured on one, shown for a string.

actions:
  build CORPUS... --to FOLDER   inventory (tokenizer.json) and word list (words.txt) of a corpus
  report CORPUS...              coverage, bytes-fallback, characters per token, known words
  encode TEXT                   ids and words of a string, character by character
  decode ID...                  the text of char ids

A corpus is a file or folder of texts, JSON Lines, Parquet or tar shards, also compressed (.gz, .zst).
`onn tokenizer ACTION --help` lists the options.

examples:
  onn tokenizer build data/quickstart/train/zh data/quickstart/train/en --to data/tokenizer
  onn tokenizer report data/quickstart/validation/zh --words data/tokenizer/words.txt
  onn tokenizer encode "人工智能 and don't"
"""
BUILT_IN, CORPUS = "built-in", "corpus"
INVENTORY_FILE, WORDS_FILE = "tokenizer.json", "words.txt"
MAX_CONSECUTIVE_BAD = 100
_SHOWN_MISSING = 20
_PLACE_IN_FILE = re.compile(r"(?:@\d+|:\d+)$")


@dataclass(frozen=True)
class Text:
    """A text of a corpus and the file it came from."""

    file: str
    text: str


def main(arguments: Sequence[str]) -> int:
    """Run `onn tokenizer`.

    Args:
        arguments: what follows the verb.
    Returns:
        The exit code.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0
    actions = {"build": _build, "report": _report, "encode": encode, "decode": decode}
    if not arguments or arguments[0] not in actions:
        given = (
            f"unknown action '{arguments[0]}'{nearest(arguments[0], actions)}" if arguments else "no action"
        )
        raise UsageError(f"{given}; actions: {', '.join(actions)} (`onn tokenizer --help` explains)")
    return actions[arguments[0]](arguments[1:])


def texts(corpora: Sequence[str]) -> Iterator[Text]:
    """The texts of corpora, in their order; media and values are passed over.

    Raises:
        UsageError: if there is no such file or folder.
        ValueError: if its kind is unknown.
        TooManyBadSamplesError: if there are too many bad samples in a row.
    """
    from datamodules.bad_samples import BadSampleLog
    from datamodules.items import BadItemError
    from datamodules.prepare.document import unpack
    from datamodules.prepare.pipeline_guess import guess_reader
    from datamodules.prepare.readers import BadSample

    for corpus in corpora:
        if not os.path.exists(corpus):
            raise UsageError(f"'{corpus}' does not exist: give a file or a folder of texts")
    log = BadSampleLog(corpora, MAX_CONSECUTIVE_BAD, num_workers=0)
    for corpus in dict.fromkeys(corpora):
        reader = guess_reader(corpus)
        for unit in reader.plan():
            for sample in reader.read(unit, corpus):
                if isinstance(sample, BadSample):
                    log.bad(
                        corpus, sample.where, BadItemError(sample.kind, f"{sample.kind}: {sample.message}")
                    )
                    continue
                log.good()
                file = _PLACE_IN_FILE.sub("", sample.id.removeprefix(f"{corpus}: "))
                for item in unpack(sample):
                    if item.text is not None:
                        yield Text(file, item.text)


def _build(arguments: Sequence[str]) -> int:
    parser = VerbParser("tokenizer build", description="Make the inventory and the word list of a corpus.")
    parser.add_argument("corpus", nargs="+", help="files or folders")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the files go")
    source: dict[str, Any] = {"choices": (CORPUS, BUILT_IN), "default": CORPUS}
    parser.add_argument("--characters", **source, help="the inventory: made, or the built-in one (no file)")
    parser.add_argument("--words", **source, help="the word list: counted, or the built-in one (no file)")
    parser.add_argument(
        "--num_characters", type=positive, default=20_480, metavar="N", help="at most (default: %(default)s)"
    )
    parser.add_argument(
        "--num_words", type=positive, default=50_000, metavar="N", help="at most (default: %(default)s)"
    )
    parser.add_argument(
        "--min_count", type=positive, default=2, metavar="N", help="of a word (default: %(default)s)"
    )
    parser.add_argument(
        "--user_words", metavar="FILE", help="words to find beside those of jieba's dictionary"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    if options.characters == options.words == BUILT_IN:
        raise UsageError("--characters and --words are both built-in: there is nothing to build")
    inventory, words_file = options.to / INVENTORY_FILE, options.to / WORDS_FILE
    for file, source_of_file in ((inventory, options.characters), (words_file, options.words)):
        if source_of_file == CORPUS and file.exists() and not options.overwrite:
            raise UsageError(f"{file} exists: give another --to, or --overwrite")

    from datamodules.prepared.durable import DurableFile
    from datamodules.text import DualTokenizer
    from datamodules.text.corpus import CorpusCounter
    from datamodules.text.vocabulary import CharacterVocabulary
    from datamodules.text.words import word_lines

    counter = CorpusCounter(DualTokenizer(user_words=options.user_words), count_runs=True)
    for text in texts(options.corpus):
        counter.add(text.text)
    total = counter.total
    report = [f"read {total.documents:,} documents, {total.characters:,} characters"]
    made: dict[Path, bytes] = {}
    if options.characters == CORPUS:
        characters = counter.characters(options.num_characters)
        made[inventory] = CharacterVocabulary.from_characters(characters).to_json()
        outside = counter.number_outside(characters) / max(1, total.characters)
        report.append(f"{inventory}: {len(characters):,} characters, {outside:.4%} of the corpus in bytes")
    if options.words == CORPUS:
        words = counter.words(options.num_words, options.min_count)
        if not words:
            raise ValueError(
                f"no word occurs {options.min_count} times in the corpus: lower --min_count or give more text"
            )
        made[words_file] = word_lines(words)
        report.append(f"{words_file}: {len(words):,} words, the rarest {words[-1][1]:,} times in the corpus")
    options.to.mkdir(parents=True, exist_ok=True)
    for file, content in made.items():
        durable = DurableFile(file)
        durable.write(content)
        durable.commit()
    names = {inventory: "vocabulary", words_file: "words"}
    init_args = ", ".join(f"{names[file]}: {file}" for file in made)
    show([*report, f"in a config: {{class_path: datamodules.TextModality, init_args: {{{init_args}}}}}"])
    return 0


def _report(arguments: Sequence[str]) -> int:
    parser = VerbParser("tokenizer report", description="What a tokenizer makes of a corpus.")
    parser.add_argument("corpus", nargs="+", help="files or folders")
    add_tokenizer_options(parser)
    parser.add_argument("--per_file", action="store_true", help="figures of every file, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    from datamodules.text.corpus import CorpusCounter, Tally

    counter = CorpusCounter(make_tokenizer(options))
    files: dict[str, Tally] = {}
    for text in texts(options.corpus):
        tally = counter.add(text.text)
        if options.per_file:
            files[text.file] = files.get(text.file, Tally()) + tally
    if options.json:
        summary = {"total": _figures(counter.total) | _inventory_figures(counter)}
        if options.per_file:
            summary["files"] = {file: _figures(tally) for file, tally in files.items()}
        show([json.dumps(summary, ensure_ascii=False)])
        return 0
    missing = " ".join(f"{shown(c)} {n:,}" for c, n in counter.missing_characters[:_SHOWN_MISSING])
    total = counter.total
    lines = [
        f"documents             {total.documents:,}",
        f"characters            {total.characters:,} ({counter.distinct_characters:,} different)",
        f"bytes-fallback        {total.bytes_fallback:.4%} of the characters, "
        f"{len(counter.missing_characters):,} different{': ' if missing else ''}{missing}",
        f"characters per token  {total.characters_per_token:.4f}",
        f"known words           {total.word_coverage:.2%} of {total.words:,} occurrences",
        f"multi-character words {total.multi_character_share:.2%} of the characters of all words",
    ]
    if options.per_file:
        lines += ["", "  characters   in bytes  char/token  known  multi  file"]
        lines += [
            f"{tally.characters:>12,}  {tally.bytes_fallback:>8.4%}  {tally.characters_per_token:>10.4f}  "
            f"{tally.word_coverage:>5.1%}  {tally.multi_character_share:>5.1%}  {file}"
            for file, tally in files.items()
        ]
    show(lines)
    return 0


def _figures(tally: Tally) -> dict[str, float]:
    return dataclasses.asdict(tally) | {
        "bytes_fallback": tally.bytes_fallback,
        "characters_per_token": tally.characters_per_token,
        "word_coverage": tally.word_coverage,
        "multi_character_share": tally.multi_character_share,
    }


def _inventory_figures(counter: CorpusCounter) -> dict[str, Any]:
    missing = counter.missing_characters
    return {
        "distinct_characters": counter.distinct_characters,
        "distinct_characters_in_bytes": len(missing),
        "most_frequent_in_bytes": dict(missing[:_SHOWN_MISSING]),
    }
