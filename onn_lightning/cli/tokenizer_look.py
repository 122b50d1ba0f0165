"""`onn tokenizer encode` and `decode`: what a tokenizer makes of one string; and what the actions share.

Notable: columns are padded by how wide characters are shown, so that Chinese lines up.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onn_lightning.cli.arguments import VerbParser

if TYPE_CHECKING:
    from datamodules.text import DualTokenizer


def encode(arguments: Sequence[str]) -> int:
    """Run `onn tokenizer encode`."""
    parser = VerbParser("tokenizer encode", description="Ids and words of a string, character by character.")
    parser.add_argument("text", help="the string")
    add_tokenizer_options(parser)
    parser.add_argument("--json", action="store_true", help="print the ids as one JSON object")
    options = parser.parse_args(arguments)
    tokenizer = make_tokenizer(options)
    encoding = tokenizer.encode(options.text)
    columns = {
        "char_ids": encoding.char_ids.tolist(),
        "word_ids": encoding.word_ids.tolist(),
        "previous_word_ids": encoding.previous_word_ids.tolist(),
        "full_context_word_ids": encoding.full_context_word_ids().tolist(),
    }
    if options.json:
        show([json.dumps(columns)])
        return 0
    table: list[tuple[str, ...]] = [("id", "character", "word so far", "word before", "word (full context)")]
    for char_id, word, previous, full in zip(*columns.values(), strict=True):
        token = tokenizer.vocabulary.tokens[char_id]
        words = (_word(tokenizer, index) for index in (word, previous, full))
        table.append((str(char_id), shown(token), *words))
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    show(["  ".join(map(_padded, row, widths)).rstrip() for row in table])
    return 0


def decode(arguments: Sequence[str]) -> int:
    """Run `onn tokenizer decode`."""
    parser = VerbParser("tokenizer decode", description="The text of char ids.")
    parser.add_argument("ids", nargs="+", type=int, metavar="ID", help="char ids")
    parser.add_argument(
        "--vocabulary", metavar="FILE", help="tokenizer.json (default: the built-in inventory)"
    )
    options = parser.parse_args(arguments)

    from datamodules.text.vocabulary import CharacterVocabulary

    vocabulary = CharacterVocabulary.builtin()
    if options.vocabulary is not None:
        content = Path(options.vocabulary).read_bytes()
        vocabulary = CharacterVocabulary.from_json(content, source=f"'{options.vocabulary}'")
    show([vocabulary.decode(options.ids)])
    return 0


def add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    """Options for the arguments of `DualTokenizer`."""
    group = parser.add_argument_group("tokenizer (default: the built-in one)")
    group.add_argument("--vocabulary", metavar="FILE", help="tokenizer.json of characters")
    group.add_argument("--words", metavar="FILE", help="word list, `word count` lines")
    group.add_argument("--user_words", metavar="FILE", help="words to add or change")
    group.add_argument("--max_words", type=positive, metavar="N", help="keep the N most frequent words")
    group.add_argument("--hashed_words", type=int, default=0, metavar="N", help="ids that other words share")


def make_tokenizer(options: argparse.Namespace) -> DualTokenizer:
    """The tokenizer of `add_tokenizer_options`."""
    from datamodules.text import DualTokenizer

    return DualTokenizer(
        options.vocabulary, options.words, options.user_words, options.max_words, options.hashed_words
    )


def positive(text: str) -> int:
    """For argparse: a number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def show(lines: Sequence[str]) -> None:
    """Write lines to stdout; where it cannot show a character it shows "?"."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _word(tokenizer: DualTokenizer, index: int) -> str:
    """A word id or previous-word id as a word, `-` for none, a lone character, or `#` and a bucket."""
    if index == 0:
        return "-"
    if index >= tokenizer.num_words:
        return shown(tokenizer.vocabulary.tokens[index - tokenizer.num_words])
    known = tokenizer.segmenter.num_known_words
    return tokenizer.segmenter.word(index) if index <= known else f"#{index - known - 1}"


def shown(token: str) -> str:
    """A character as it can be seen: spaces and what cannot be printed as an escape."""
    return token if token.isprintable() and not token.isspace() else repr(token)[1:-1].replace(" ", "␠")


def _width(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
