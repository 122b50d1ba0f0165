"""The forward table: the one recurrence behind causal, previous and full-context word ids.

For every token i it keeps the most probable segmentation of the text up to and including i: the id
of its last word, where that word starts, and the word before it. Nothing after i is ever read.

Notable:
- The table is built by arrival: the words that are still under way (their start, their score
  there, their node in the trie) advance by one token. A stream and a 10 MB line are therefore the
  same loop, its state is as long as the longest word, and a step costs as much.
- It runs on char ids, so byte tokens can be followed one by one. A character spelled in bytes is a
  lone character from its first byte on: that byte tells nothing of the others.
- Scores are integers (log-probabilities in steps of 2^-24): sums are exact in any order and at any
  length, the same on every machine. On a tie the shorter last word wins.
- A run of letters and digits (don't, été, 2026) is one word: no word starts strictly inside. Its id
  is that of the longest known word it starts with. An apostrophe right after a letter belongs to
  the run, a closing quote too: whether it is an inner one only the next character tells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datamodules.text.compiled import kernel
from datamodules.text.trie import BASE, CHECK, COST, WORD

# What a token is to the segmenter.
OTHER, LETTER, APOSTROPHE, LEAD_BYTE, CONTINUATION_BYTE = 0, 1, 2, 3, 4

# Registers: what must be known of the prefix beside the words under way.
POSITION = 0  # tokens read
SCORE = 1  # of the best segmentation of the prefix (minus its cost)
LAST = 2  # its last word, as a previous-word id; 0 at the very beginning
START = 3  # where that word starts
BEFORE = 4  # the word before it, as a previous-word id
UNDER_WAY = 5  # number of words under way
IN_BYTES = 6  # 1: the last token is a byte that a continuation byte may follow
RUN_KIND = 7  # LETTER or APOSTROPHE: the last token's kind inside a run; 0: not inside one
RUN_START, RUN_SCORE, RUN_BEFORE = 8, 9, 10  # where the run starts (outside: the last token), what was known
RUN_WORD = 11  # the longest known word that it starts with
NUM_REGISTERS = 12

# Columns of the words under way.
NODE, AT_SCORE, AT_BEFORE, AT_START = 0, 1, 2, 3

_LOWEST = -(2**62)

Table = npt.NDArray[np.int64]


@kernel
def advance(
    cells: npt.NDArray[np.int32],
    symbols: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.uint8],
    floor: int,
    first_lone: int,
    registers: Table,
    under_way: Table,
    char_ids: Table,
    word_ids: Table,
    previous_word_ids: Table,
    starts: Table,
) -> None:
    """Read tokens and write their rows of the table.

    Args:
        cells: [cells, 4] the trie.
        symbols: [vocab_size] the trie's symbol of each char id, 0: in no word.
        kinds: [vocab_size] OTHER .. CONTINUATION_BYTE.
        floor: cost of a character or run in no known word.
        first_lone: previous-word id of char id 0 as a lone character (1 + number of words).
        registers: [NUM_REGISTERS] state, updated.
        under_way: [longest word + 1, 4] state, updated.
        char_ids: [n] tokens to read.
        word_ids, previous_word_ids, starts: [n] written; starts count from the state's beginning.
    """
    # Locals, not registers: the compiler cannot know that the arrays do not overlap.
    position, score, last = registers[POSITION], registers[SCORE], registers[LAST]
    start, before = registers[START], registers[BEFORE]
    count = np.uint64(registers[UNDER_WAY])
    in_bytes = registers[IN_BYTES] != 0
    run_kind, run_start, run_score = registers[RUN_KIND], registers[RUN_START], registers[RUN_SCORE]
    run_before, run_word = registers[RUN_BEFORE], registers[RUN_WORD]
    one = np.uint64(1)  # unsigned indices spare the test for negative ones

    for i in range(len(char_ids)):
        char = np.uint64(char_ids[i])
        lone = first_lone + char_ids[i]
        kind = kinds[char]

        if kind == CONTINUATION_BYTE and in_bytes:
            word_ids[i] = 0
            previous_word_ids[i] = before
            starts[i] = start
            last = lone
            position += 1
            continue
        in_bytes = kind >= LEAD_BYTE

        inside = run_kind != 0 and (kind == LETTER or (kind == APOSTROPHE and run_kind == LETTER))
        if not inside:
            under_way[count, NODE] = 0
            under_way[count, AT_SCORE] = score
            under_way[count, AT_BEFORE] = last
            under_way[count, AT_START] = position
            count += one
            run_kind = LETTER if kind == LETTER else 0
            run_start, run_score, run_before, run_word = position, score, last, 0
        else:
            run_kind = kind

        # `run_*` is the run so far or, outside runs, this character alone: what may always be a word.
        best, best_word, best_before, best_start = _LOWEST, 0, run_before, run_start
        whole_known = False  # then its own entry among the words under way says it better
        kept = np.uint64(0)
        symbol = symbols[char]
        if symbol:
            for entry in range(count):
                child = np.uint64(cells[np.uint64(under_way[entry, NODE]), BASE] + symbol)
                if cells[child, CHECK] != under_way[entry, NODE]:
                    continue
                at_score, at_before = under_way[entry, AT_SCORE], under_way[entry, AT_BEFORE]
                at_start = under_way[entry, AT_START]
                word = cells[child, WORD]
                if word:
                    if at_start == run_start:
                        whole_known = True
                        run_word = word
                    if at_score - cells[child, COST] >= best:  # later entries are shorter words
                        best = at_score - cells[child, COST]
                        best_word, best_before, best_start = word, at_before, at_start
                under_way[kept, NODE] = child
                under_way[kept, AT_SCORE] = at_score
                under_way[kept, AT_BEFORE] = at_before
                under_way[kept, AT_START] = at_start
                kept += one
        count = kept

        if not whole_known and run_score - floor >= best:
            best = run_score - floor
            best_word, best_before, best_start = run_word, run_before, run_start

        score, start, before = best, best_start, best_before
        last = best_word if best_word else lone
        position += 1
        word_ids[i] = best_word
        previous_word_ids[i] = before
        starts[i] = start

    registers[POSITION], registers[SCORE], registers[LAST] = position, score, last
    registers[START], registers[BEFORE] = start, before
    registers[UNDER_WAY] = count
    registers[IN_BYTES] = in_bytes
    registers[RUN_KIND], registers[RUN_START], registers[RUN_SCORE] = run_kind, run_start, run_score
    registers[RUN_BEFORE], registers[RUN_WORD] = run_before, run_word


@kernel
def trace_back(word_ids: Table, previous_word_ids: Table, starts: Table) -> None:
    """Turn the table, in place, into the full-context segmentation: every token gets its word's last row.

    Args:
        word_ids, previous_word_ids, starts: [n] as `advance` wrote them from a fresh state.
    """
    end = len(starts) - 1
    while end >= 0:
        start = starts[end]
        for i in range(start, end):
            word_ids[i] = word_ids[end]
            previous_word_ids[i] = previous_word_ids[end]
            starts[i] = start
        end = start - 1
