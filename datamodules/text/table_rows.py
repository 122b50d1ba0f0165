"""Which row of a trained table each row of a larger tokenizer's table continues.

Notable:
- Characters and words are matched by what they are, never by their numbers: both may have other ids in
  the new tokenizer.
- A new word continues the row that the previous tokenizer gave in its place: at the last character of that
  word, read by itself, it had some word id too - of a part of it, of a bucket, or of the lone character.
  So texts with new words change as little as possible.
- A new character was spelled in bytes. Its row in the table of previous words continues that of its last
  byte; its own begins as a new row (as the mean of all: see `Modality.table_origins`), since a row of the
  character table is a symbol to predict, too, and must take little probability at first.
- A bucket of a hash continues the bucket that the same hash had; that works where the new number of
  buckets is a multiple of the previous one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datamodules.text.tokenizer import DualTokenizer
from datamodules.text.vocabulary import CharacterVocabulary, Ids

NEW = -1
_BETWEEN = "\n"  # stands in no word of a word list, whose lines end with it


def feature_origins(
    previous: DualTokenizer, new: DualTokenizer, previous_ngram_buckets: int = 0, ngram_buckets: int = 0
) -> dict[str, Ids]:
    """For each table of the text embedder [rows] the previous row that each row continues; -1: a new one.

    Args:
        previous: the tokenizer that the tables were trained with.
        new: the one to come.
        previous_ngram_buckets, ngram_buckets: rows of the tables of the last 2 and 3 characters.
    Raises:
        ValueError: if the new tokenizer lacks a character or word of the previous one (they are named), or
            hashes would lead to other rows.
    """
    characters = _characters(previous.vocabulary, new.vocabulary)
    words, as_previous = _words(previous, new)
    buckets = bucket_origins(previous.hashed_words, new.hashed_words, "hashed_words")
    buckets += 1 + previous.segmenter.num_known_words
    lone = previous.num_words + np.where(characters >= 0, characters, _last_bytes(previous, new))
    tables = {
        "character": characters,
        "word": np.concatenate(([0], words, buckets)),
        "previous_word": np.concatenate(([0], as_previous, buckets, lone)),
    }
    if not (previous_ngram_buckets or ngram_buckets):
        return tables
    moved = np.flatnonzero(characters[: previous.vocab_size] != np.arange(previous.vocab_size))
    if len(moved):
        raise ValueError(
            f"ngram_buckets hash char ids, and {previous.vocabulary.tokens[moved[0]]!r} would no longer have "
            f"the id {moved[0]}: put new characters behind the previous ones "
            "(CharacterVocabulary([*previous.tokens, *new]).to_json())"
        )
    ngrams = bucket_origins(previous_ngram_buckets, ngram_buckets, "ngram_buckets")
    return {**tables, "bigram": ngrams, "trigram": ngrams}


def bucket_origins(previous: int, new: int, what: str) -> Ids:
    """[new] the bucket that each bucket continues.

    Args:
        previous: buckets so far.
        new: buckets from now on.
        what: name of the number, for messages.
    Raises:
        ValueError: if the new number is no multiple of the previous one, so that hashes would move.
    """
    if new == previous:
        return np.arange(new)
    if not previous or not new or new % previous:
        multiple = f"a multiple of {previous}" if previous else "0, as so far"
        raise ValueError(
            f"{what} cannot go from {previous} to {new}: what shares a trained row by its hash would get "
            f"another row; make it {multiple}"
        )
    return np.arange(new) % previous


def _characters(previous: CharacterVocabulary, new: CharacterVocabulary) -> Ids:
    ids = {token: index for index, token in enumerate(previous.tokens)}
    _refuse_missing(set(ids) - set(new.tokens), "characters", "vocabulary")
    return np.array([ids.get(token, NEW) for token in new.tokens], dtype=np.int64)


def _last_bytes(previous: DualTokenizer, new: DualTokenizer) -> Ids:
    """[vocab_size] previous char id of the last UTF-8 byte of each new token; 0 where it is no character."""
    ids = previous.vocabulary.byte_ids
    return np.array(
        [ids[token.encode()[-1]] if len(token) == 1 else 0 for token in new.vocabulary.tokens], dtype=np.int64
    )


def _words(previous: DualTokenizer, new: DualTokenizer) -> tuple[Ids, Ids]:
    """[num_known_words] origin of each word as the current and as the previous word."""
    ids = {word: number for number, word in enumerate(_known(previous), start=1)}
    words = list(_known(new))
    _refuse_missing(ids.keys() - set(words), "words", "word list")
    current = np.array([ids.get(word, NEW) for word in words], dtype=np.int64)
    before = current.copy()
    places = np.flatnonzero(current < 0)
    if len(places):
        encoding = previous.encode("".join(words[place] + _BETWEEN for place in places))
        ends = np.flatnonzero(encoding.char_ids == previous.encode(_BETWEEN).char_ids[-1])
        current[places] = encoding.word_ids[ends - 1]
        before[places] = encoding.previous_word_ids[ends]
    return current, before


def _known(tokenizer: DualTokenizer) -> Iterable[str]:
    segmenter = tokenizer.segmenter
    return map(segmenter.word, range(1, segmenter.num_known_words + 1))


def _refuse_missing(missing: set[str], what: str, where: str) -> None:
    if missing:
        named = ", ".join(map(repr, sorted(missing)[:5]))
        raise ValueError(
            f"the new {where} lacks {len(missing)} {what} of the one that the tables were trained with "
            f"({named}{', ...' if len(missing) > 5 else ''}): tables only grow; add them"
        )
