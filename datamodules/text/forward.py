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
RUN_START, RUN_SCORE, RUN_BEFORE = 8, 9, 10  # where the run starts, and what was known there
RUN_WORD = 11  # the longest known word that the run starts with
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
    for i in range(len(char_ids)):
        char = char_ids[i]
        kind = kinds[char]
        position = registers[POSITION]
        registers[POSITION] = position + 1

        if kind == CONTINUATION_BYTE and registers[IN_BYTES]:
            word_ids[i] = 0
            previous_word_ids[i] = registers[BEFORE]
            starts[i] = registers[START]
            registers[LAST] = first_lone + char
            continue
        registers[IN_BYTES] = kind >= LEAD_BYTE

        score, last = registers[SCORE], registers[LAST]
        count = registers[UNDER_WAY]
        run_kind = registers[RUN_KIND]
        inside = run_kind != 0 and (kind == LETTER or (kind == APOSTROPHE and run_kind == LETTER))
        if not inside:
            under_way[count, NODE] = 0
            under_way[count, AT_SCORE] = score
            under_way[count, AT_BEFORE] = last
            under_way[count, AT_START] = position
            count += 1
        if inside or kind == LETTER:
            registers[RUN_KIND] = kind
            if not inside:
                registers[RUN_START] = position
                registers[RUN_SCORE] = score
                registers[RUN_BEFORE] = last
                registers[RUN_WORD] = 0
            run_start = registers[RUN_START]
        else:
            registers[RUN_KIND] = 0
            run_start = -1

        best, best_word, best_before, best_start = _LOWEST, 0, 0, position
        whole_known = False  # the run so far, or the character outside a run, is itself a word
        whole_start = run_start if run_start >= 0 else position
        kept = 0
        symbol = symbols[char]
        if symbol:
            for entry in range(count):
                node = under_way[entry, NODE]
                child = cells[node, BASE] + symbol
                if cells[child, CHECK] != node:
                    continue
                at_score = under_way[entry, AT_SCORE]
                at_before = under_way[entry, AT_BEFORE]
                at_start = under_way[entry, AT_START]
                word = cells[child, WORD]
                if word:
                    if at_start == whole_start:
                        whole_known = True
                        registers[RUN_WORD] = word
                    if at_score - cells[child, COST] >= best:  # later entries are shorter words
                        best = at_score - cells[child, COST]
                        best_word, best_before, best_start = word, at_before, at_start
                under_way[kept, NODE] = child
                under_way[kept, AT_SCORE] = at_score
                under_way[kept, AT_BEFORE] = at_before
                under_way[kept, AT_START] = at_start
                kept += 1
        registers[UNDER_WAY] = kept

        if not whole_known:
            if run_start >= 0:
                if registers[RUN_SCORE] - floor >= best:
                    best = registers[RUN_SCORE] - floor
                    best_word, best_before, best_start = registers[RUN_WORD], registers[RUN_BEFORE], run_start
            elif score - floor >= best:
                best = score - floor
                best_word, best_before, best_start = 0, last, position

        registers[SCORE] = best
        registers[LAST] = best_word if best_word else first_lone + char
        registers[START] = best_start
        registers[BEFORE] = best_before
        word_ids[i] = best_word
        previous_word_ids[i] = best_before
        starts[i] = best_start


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
