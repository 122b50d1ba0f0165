"""`LengthFilter`: drops documents that are too short, too long, or whose words have no words' lengths.

Notable:
- Lengths are counted in words where words are spaced and in characters where they are not, 1.6 to a word.
- The least length is asked of documents of text alone: a caption is short by nature.
"""

from __future__ import annotations

from datatrove.data import Document

from datamodules.prepare.filters.words import words_of
from datamodules.prepare.step import Filter

_FEW_LONE = 0.1


class LengthFilter(Filter):
    """Drops documents by their length and that of their words.

    Args:
        min_words: least words of a text whose words are spaced (Gopher, Rae et al. 2021, arXiv 2112.11446:
            50).
        min_characters: least characters, punctuation not counted, of a text in a script without spaces.
        max_characters: most characters of any text, everything counted; None: no limit. (Gopher: 100,000
            words; whole books are wanted here.)
        min_mean_word, max_mean_word: bounds of the mean length of spaced words (Gopher: 3 and 10).
        max_word: longest word (C4, Raffel et al. 2019, arXiv 1910.10683: 1,000): what is longer is encoded
            data.
    """

    name = "length"

    def __init__(
        self,
        min_words: int = 50,
        min_characters: int = 80,
        max_characters: int | None = None,
        min_mean_word: float = 3.0,
        max_mean_word: float = 10.0,
        max_word: int = 1000,
    ) -> None:
        super().__init__()
        self.min_words, self.min_characters = min_words, min_characters
        self.max_characters = max_characters
        self.min_mean_word, self.max_mean_word = min_mean_word, max_mean_word
        self.max_word = max_word

    def judge(self, document: Document) -> str | None:
        """Name the bound that the text is beyond."""
        if not document.text:
            return None
        if self.max_characters is not None and len(document.text) > self.max_characters:
            return "too long"
        words = words_of(document.text)
        least = self.min_characters if words.unspaced else self.min_words
        if not document.media and len(words) < least:
            return "too short"
        if len(words) and words.lengths.max() > self.max_word:
            return "a word too long"
        spaced = len(words) - words.num_lone
        if spaced < self.min_words or words.num_lone > _FEW_LONE * spaced:
            return None  # single letters among Chinese are options and variables
        mean = (int(words.lengths.sum()) - words.num_lone) / spaced
        if mean < self.min_mean_word:
            return "words too short"
        if mean > self.max_mean_word:
            return "words too long"
        return None
