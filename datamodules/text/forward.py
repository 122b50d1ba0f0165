"""The forward table: the one recurrence behind causal, previous and full-context word ids.

For every token i it keeps the most probable segmentation of the text up to and including i: the id
of its last word, where that word starts, and the word before it. Nothing after i is ever used.

Notable:
- The table is built by arrival: the words that are still under way (their start, their score
  there, their node in the trie) advance by one token. A stream and a 10 MB line are therefore the
  same loop, its state is as long as the longest word, and a step costs as much.
- `_step` is the recurrence. Two loops do the same faster where text allows it: `_plain` where
  no token belongs to a run (Chinese), without a branch that depends on what the words are, and
  `_runs` where nothing but the run itself is under way (English). A stream, which mostly steps,
  and a whole text must agree at every token.
- All of it stands in this one file: numba's disk cache notices a change of a kernel's own file alone.
- It runs on char ids, so byte tokens can be followed one by one. A character spelled in bytes is a
  lone character from its first byte on: that byte tells nothing of the others.
- Scores are integers (log-probabilities in steps of 2^-24): sums are exact in any order and at any
  length, the same on every machine. On a tie the shorter last word wins.
- A run of letters and digits (don't, été, 2026) is one word: no word starts strictly inside. Its id
  is that of the longest known word it starts with, or the bucket of its hash where there are buckets. An
  apostrophe right after a letter belongs to the run, a closing quote too: whether it is an inner one
  only the next character tells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datamodules.text.hashing import SEED, bucket, mixed
from datamodules.text.trie import BASE, COST, ROOT, WORD, Cells, Checks
from onn_lightning.compiled import tight_kernel

# What a token is to the segmenter.
OTHER, LETTER, APOSTROPHE, LEAD_BYTE, CONTINUATION_BYTE = 0, 1, 2, 3, 4

# Columns of the characters: kind and symbol of the trie, then what the trie says of the word that is this
# character alone (of no such word: no children, no id, the cost of the unknown).
TRAITS, ALONE_BASE, ALONE_WORD, ALONE_COST = 0, 1, 2, 3
KIND_SHIFT = 24
SYMBOL_MASK = 2**KIND_SHIFT - 1

# Settings.
FLOOR = 0  # cost of a character or run in no known word
FIRST_BUCKET = 1  # word id of the first bucket
NUM_BUCKETS = 2  # 0: a run has the id of the longest known word it starts with
FIRST_LONE = 3  # previous-word id of char id 0 as a lone character (the number of word ids)
NUM_SETTINGS = 4

# Registers: what must be known of the prefix beside the words under way.
POSITION = 0  # tokens read
SCORE = 1  # of the best segmentation of the prefix (minus its cost)
LAST = 2  # its last word, as a previous-word id; 0 at the very beginning
START = 3  # where that word starts
BEFORE = 4  # the word before it, as a previous-word id
UNDER_WAY = 5  # number of words under way
IN_BYTES = 6  # 1: the last token is a byte that a continuation byte may follow
RUN_KIND = 7  # LETTER or APOSTROPHE: the last token's kind inside a run; 0: not inside one
RUN_START, RUN_SCORE, RUN_BEFORE = 8, 9, 10  # where the run starts and what was known there
RUN_WORD = 11  # what it is so far: its longest known beginning, or its bucket
RUN_HASH = 12  # of its characters
NUM_REGISTERS = 13

# Columns of the words under way, the longest first: their node (never 0), and what was known at their start.
NODE, AT_SCORE, AT_BEFORE, AT_START = 0, 1, 2, 3

# Rows of the scratch memory: what the trie says of the words of 1, 2 and 3 tokens that end at a token; their
# nodes one place later, beside the token that follows.
_SYMBOL, _WORD1, _WORD2, _WORD3, _COST1, _COST2, _COST3, _BASE1, _BASE2, _BASE3, _LAST = range(11)
_BLOCK = 256
SCRATCH_SHAPE = (11, _BLOCK + 1)

LOWEST = -(2**62)
_ONE = np.uint64(1)  # unsigned indices spare the test for negative ones

Table = npt.NDArray[np.int64]
Int = int | np.int64
Words = tuple[Checks, Cells, Cells, npt.NDArray[np.int32], Table]
"""What never changes: CHECK and cells of the trie; characters [vocab_size, 4] (`TRAITS` ..); code points for
the hashes of runs [vocab_size]; settings (`FLOOR` ..)."""
State = tuple[Table, Table, Cells]
"""What is known of the prefix: registers; words under way [longest word + 1, 4]; and scratch memory."""
Rows = tuple[Table, Table, Table]
"""Word ids, previous-word ids, starts."""


@tight_kernel
def advance(
    words: Words,
    state: State,
    char_ids: Table,
    rows: Rows,
) -> None:
    """Read tokens and write their rows of the table.

    Args:
        words: what never changes.
        state: updated.
        char_ids: [n] tokens to read.
        rows: [n] each, written; starts count from the state's beginning.
    """
    characters, (registers, _, _) = words[2], state
    i = np.int64(0)
    while i < len(char_ids):
        kind = characters[np.uint64(char_ids[i]), TRAITS] >> KIND_SHIFT
        if kind == OTHER:
            i = _plain(words, state, char_ids, i, rows)
        elif kind == LETTER and registers[RUN_KIND] == 0 and registers[UNDER_WAY] == 0:
            i = _runs(words, state, char_ids, i, rows)
        else:
            _step(words, state, char_ids[i], i, rows)
            i += 1


@tight_kernel
def _put(under_way: Table, entry: Int, node: Int, score: Int, before: Int, start: Int) -> None:
    under_way[entry, NODE] = node
    under_way[entry, AT_SCORE] = score
    under_way[entry, AT_BEFORE] = before
    under_way[entry, AT_START] = start


@tight_kernel
def _step(words: Words, state: State, char_id: Int, i: Int, rows: Rows) -> None:
    """Read any one token."""
    checks, cells, characters, folded, settings = words
    registers, under_way, _ = state
    word_ids, previous_word_ids, starts = rows
    traits = characters[char_id, TRAITS]
    kind, symbol = traits >> KIND_SHIFT, traits & SYMBOL_MASK
    position, score, last = registers[POSITION], registers[SCORE], registers[LAST]
    lone = settings[FIRST_LONE] + char_id
    registers[POSITION] = position + 1
    if kind == CONTINUATION_BYTE and registers[IN_BYTES]:
        word_ids[i] = 0
        previous_word_ids[i] = registers[BEFORE]
        starts[i] = registers[START]
        registers[LAST] = lone
        return
    registers[IN_BYTES] = kind >= LEAD_BYTE

    count = registers[UNDER_WAY]
    run_kind = registers[RUN_KIND]
    inside = run_kind != 0 and (kind == LETTER or (kind == APOSTROPHE and run_kind == LETTER))
    if inside:
        registers[RUN_KIND] = kind
    else:
        _put(under_way, count, ROOT, score, last, position)
        count += 1
        registers[RUN_KIND] = LETTER if kind == LETTER else 0
        registers[RUN_START], registers[RUN_SCORE], registers[RUN_BEFORE] = position, score, last
        registers[RUN_WORD] = 0
        registers[RUN_HASH] = np.int64(SEED)
    if settings[NUM_BUCKETS]:
        run_hash = mixed(np.uint64(registers[RUN_HASH]), folded[char_id])
        registers[RUN_HASH] = np.int64(run_hash)
        if inside:
            registers[RUN_WORD] = settings[FIRST_BUCKET] + bucket(run_hash, settings[NUM_BUCKETS])

    # `RUN_*` is the run so far or, outside runs, this character alone: what may always be a word.
    run_start = registers[RUN_START]
    best, best_word, best_before, best_start = np.int64(LOWEST), np.int64(0), registers[RUN_BEFORE], run_start
    whole_known = False  # then its own entry among the words under way says it better
    kept = 0
    for entry in range(count):
        child = under_way[entry, NODE] + symbol
        if checks[child] != symbol:
            continue
        at_score, at_before, at_start = (
            under_way[entry, AT_SCORE],
            under_way[entry, AT_BEFORE],
            under_way[entry, AT_START],
        )
        word = np.int64(cells[child, WORD])
        if word:
            if at_start == run_start:
                whole_known = True
                registers[RUN_WORD] = word
            if at_score - cells[child, COST] >= best:  # later entries are shorter words
                best = at_score - cells[child, COST]
                best_word, best_before, best_start = word, at_before, at_start
        if cells[child, BASE]:
            _put(under_way, kept, cells[child, BASE], at_score, at_before, at_start)
            kept += 1
    registers[UNDER_WAY] = kept

    alone = registers[RUN_SCORE] - settings[FLOOR]
    if not whole_known and alone >= best:
        best = alone
        best_word, best_before, best_start = registers[RUN_WORD], registers[RUN_BEFORE], run_start
    registers[SCORE], registers[START], registers[BEFORE] = best, best_start, best_before
    registers[LAST] = best_word if best_word else lone
    word_ids[i] = best_word
    previous_word_ids[i] = best_before
    starts[i] = best_start


@tight_kernel
def _look_up(words: Words, scratch: Cells, char_ids: Table, begin: Int) -> np.uint64:
    """Look up all words of up to 3 tokens within the plain tokens that follow.

    Nothing here depends on which of them win, and nothing branches on what is found, so that many cells
    are under way from memory at once.

    Returns:
        Number of tokens, at most `_BLOCK`, up to the first that is not plain.
    """
    checks, cells, characters, _, _ = words
    count = np.uint64(0)
    for index in range(np.uint64(begin), np.uint64(min(begin + _BLOCK, len(char_ids)))):
        char = np.uint64(char_ids[index])
        traits = characters[char, TRAITS]
        if traits >> KIND_SHIFT != OTHER:
            break
        scratch[_SYMBOL, count] = traits & SYMBOL_MASK
        scratch[_WORD1, count] = characters[char, ALONE_WORD]
        scratch[_COST1, count] = characters[char, ALONE_COST]
        count += _ONE
        scratch[_BASE1, count] = characters[char, ALONE_BASE]
    scratch[_BASE1, 0] = scratch[_BASE2, 0] = 0
    for place in range(count):
        cell, found = _child(checks, scratch[_BASE1, place], scratch[_SYMBOL, place])
        scratch[_WORD2, place] = cells[cell, WORD]
        scratch[_COST2, place] = cells[cell, COST]
        scratch[_BASE2, place + _ONE] = np.int64(cells[cell, BASE]) & found
    for place in range(count):
        cell, found = _child(checks, scratch[_BASE2, place], scratch[_SYMBOL, place])
        scratch[_WORD3, place] = cells[cell, WORD]
        scratch[_COST3, place] = cells[cell, COST]
        scratch[_BASE3, place + _ONE] = np.int64(cells[cell, BASE]) & found
    return count


@tight_kernel
def _child(checks: Checks, base: Int, symbol: Int) -> tuple[np.uint64, np.int64]:
    """Cell of a node's child, 0 if there is none; and all ones if there is one, else zero.

    A mask in place of a branch: whether two characters go together cannot be predicted. Compilers make a
    branch of it all the same where it is used only once.
    """
    child = np.int64(base) + np.int64(symbol)
    found = ((np.int64(checks[np.uint64(child)]) ^ np.int64(symbol)) - 1) >> 63
    return np.uint64(child & found), found


@tight_kernel
def _plain(words: Words, state: State, char_ids: Table, begin: Int, rows: Rows) -> np.int64:
    """Read tokens that belong to no run; the first must be one. Returns the index of the next token."""
    checks, cells, characters, _, settings = words
    registers, under_way, scratch = state
    word_ids, previous_word_ids, starts = rows
    n = _look_up(words, scratch, char_ids, begin)
    first_lone = settings[FIRST_LONE]
    first_position, count = registers[POSITION], registers[UNDER_WAY]
    # Scores before the last token, the one before it, and the one before that.
    score1 = score2 = score3 = registers[SCORE]
    scratch[_LAST, 0] = registers[LAST]
    for place in range(n):
        # A longer word must be better than a shorter one. Selected by masks, as in `_child`; the longer words
        # first, because their scores have long been known.
        best = score2 - np.int64(scratch[_COST2, place])
        longer = score3 - np.int64(scratch[_COST3, place])
        mask = (best - longer) >> 63
        best ^= (best ^ longer) & mask
        back = 1 - mask  # tokens from the word's first to this one
        alone = score1 - np.int64(scratch[_COST1, place])
        mask = (alone - best) >> 63
        best = (best & mask) | (alone & ~mask)
        back &= mask
        word = np.int64(scratch[np.uint64(_WORD1 + back), place])
        before = np.int64(scratch[_LAST, np.uint64(np.int64(place) - back)])
        start = first_position + np.int64(place) - back

        if count:  # rare: longer words, and those that began before these tokens
            symbol, kept = scratch[_SYMBOL, place], 0
            longest = np.int64(LOWEST)
            its_word, its_before, its_start = word, before, start
            for entry in range(count):
                child = under_way[entry, NODE] + symbol
                if checks[child] != symbol:
                    continue
                at_score, at_before, at_start = (
                    under_way[entry, AT_SCORE],
                    under_way[entry, AT_BEFORE],
                    under_way[entry, AT_START],
                )
                if cells[child, WORD] and at_score - cells[child, COST] >= longest:
                    longest = at_score - cells[child, COST]
                    its_word, its_before, its_start = np.int64(cells[child, WORD]), at_before, at_start
                if cells[child, BASE]:
                    _put(under_way, kept, cells[child, BASE], at_score, at_before, at_start)
                    kept += 1
            count = kept
            if longest > best:
                best, word, before, start = longest, its_word, its_before, its_start
        base, following = scratch[_BASE3, place + _ONE], place + _ONE
        if base:
            first = np.int64(place) - 2
            _put(under_way, count, base, score3, scratch[_LAST, first], first_position + first)
            count += 1

        score1, score2, score3 = best, score1, score2
        mask = (word - 1) >> 63
        lone = first_lone + char_ids[np.uint64(begin) + place]
        scratch[_LAST, following] = (lone & mask) | (word & ~mask)
        word_ids[np.uint64(begin) + place] = word
        previous_word_ids[np.uint64(begin) + place] = before
        starts[np.uint64(begin) + place] = start

    end, last = np.int64(begin) + np.int64(n), np.int64(n) - 1
    if scratch[_BASE2, n]:
        first = last - 1
        _put(under_way, count, scratch[_BASE2, n], score3, scratch[_LAST, first], first_position + first)
        count += 1
    if scratch[_BASE1, n]:
        _put(under_way, count, scratch[_BASE1, n], score2, scratch[_LAST, last], first_position + last)
        count += 1
    registers[POSITION], registers[SCORE] = first_position + np.int64(n), score1
    registers[LAST] = scratch[_LAST, n]
    registers[START], registers[BEFORE] = starts[end - 1], previous_word_ids[end - 1]
    registers[IN_BYTES] = registers[RUN_KIND] = 0
    registers[UNDER_WAY] = count
    if end < len(char_ids):
        _drop_dead_ends(checks, registers, under_way, characters[char_ids[end], TRAITS] & SYMBOL_MASK)
    return end


@tight_kernel
def _drop_dead_ends(checks: Checks, registers: Table, under_way: Table, symbol: Int) -> None:
    """Forget the words under way that do not go on with a symbol: with none left, runs are read fast."""
    kept = 0
    for entry in range(registers[UNDER_WAY]):
        if symbol and checks[under_way[entry, NODE] + symbol] == symbol:
            for column in range(4):
                under_way[kept, column] = under_way[entry, column]
            kept += 1
    registers[UNDER_WAY] = kept


@tight_kernel
def _runs(words: Words, state: State, char_ids: Table, begin: Int, rows: Rows) -> np.int64:
    """Read runs, and tokens of no word between them, where nothing else is under way.

    The first token must begin a run. Returns the index of the next token.
    """
    checks, cells, characters, folded, settings = words
    registers, under_way, _ = state
    word_ids, previous_word_ids, starts = rows
    floor, first_lone = settings[FLOOR], settings[FIRST_LONE]
    first_bucket, num_buckets = settings[FIRST_BUCKET], settings[NUM_BUCKETS]
    score, last = registers[SCORE], registers[LAST]
    offset = registers[POSITION] - begin  # from indices to positions
    end = np.uint64(len(char_ids))
    i = np.uint64(begin)
    while True:
        start, before = np.int64(i) + offset, last
        run_kind, run_word, run_hash = np.int64(LETTER), np.int64(0), SEED
        node, cost = np.int64(ROOT), floor
        first = i
        while i < end:
            char = np.uint64(char_ids[i])
            traits = np.int64(characters[char, TRAITS])
            kind = traits >> KIND_SHIFT
            if kind != LETTER and (kind != APOSTROPHE or run_kind != LETTER):
                break
            run_kind = kind
            symbol = traits & SYMBOL_MASK
            if num_buckets:
                run_hash = mixed(run_hash, folded[char])
                if i > first:
                    run_word = first_bucket + bucket(run_hash, num_buckets)
            child = np.uint64(node + symbol)
            cost = floor
            if checks[child] == symbol:
                node = np.int64(cells[child, BASE])
                if cells[child, WORD]:
                    run_word = np.int64(cells[child, WORD])
                    cost = np.int64(cells[child, COST])
            else:
                node = np.int64(0)
            word_ids[i] = run_word
            previous_word_ids[i] = before
            starts[i] = start
            i += _ONE
        run_score, score = score, score - cost
        last = run_word if run_word else first_lone + char_ids[i - _ONE]

        if i == end:
            registers[RUN_KIND], registers[RUN_START] = run_kind, start
            registers[RUN_SCORE], registers[RUN_BEFORE] = run_score, before
            registers[RUN_WORD], registers[RUN_HASH] = run_word, np.int64(run_hash)
            goes_on = node > 0
        else:
            registers[RUN_KIND] = 0
            symbol = traits & SYMBOL_MASK
            goes_on = checks[np.uint64(node + symbol)] == symbol
        if goes_on and symbol:
            _put(under_way, 0, node, run_score, before, start)
            registers[UNDER_WAY] = 1
            break
        while i < end and characters[np.uint64(char_ids[i]), TRAITS] == OTHER << KIND_SHIFT:
            start, before = np.int64(i) + offset, last
            last = first_lone + char_ids[i]
            score -= floor
            word_ids[i] = 0
            previous_word_ids[i] = before
            starts[i] = start
            i += _ONE
            registers[RUN_KIND] = 0
        if i == end or characters[np.uint64(char_ids[i]), TRAITS] >> KIND_SHIFT != LETTER:
            break
    registers[POSITION] = np.int64(i) + offset
    registers[SCORE], registers[LAST] = score, last
    registers[START], registers[BEFORE] = start, before
    registers[IN_BYTES] = 0
    return np.int64(i)


@tight_kernel
def trace_back(column: Table, starts: Table, full: Table) -> None:
    """Give every token what a column of the table says at the last token of its word.

    The words are those of the best segmentation of the whole text.

    Args:
        column: [n] word ids, previous-word ids or starts, as `advance` wrote them from a fresh state.
        starts: [n] likewise.
        full: [n] written.
    """
    n = len(starts)
    begin, value = np.int64(n), np.int64(0)
    for index in range(n):
        i = np.uint64(n - 1 - index)
        mask = (np.int64(i) - begin) >> 63  # all ones at the last token of a word
        value ^= (value ^ column[i]) & mask
        begin ^= (begin ^ starts[i]) & mask
        full[i] = value
