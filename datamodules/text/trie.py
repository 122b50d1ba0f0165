"""A double-array trie of words over small integer symbols: one small memory access a step.

Notable:
- A node is known by its BASE alone. Its child under symbol s is cell `BASE + s`, and it is there if
  CHECK of that cell is s: no two nodes have the same BASE, so nobody else's child can be there. Most steps
  lead nowhere, and all they read is CHECK, whose hot part stays in the cache.
- What a cell leads to - BASE of its own children, WORD that ends there, its COST - is in an array of its own.
- BASE 0 belongs to no node: a cell without children leads to it, and no path leads on from there. Cell 0 is
  no child: it stands for "not found", so loops need not ask: no children, no word, a COST that never wins.
  Free cells say the same, with a CHECK of 0.
- Built breadth first, so that the nodes with thousands of children come while the array is empty;
  nodes with one child, the great majority, then fill the holes. 349,000 words take well under a
  second.
- Symbol 0 belongs to no word.

Source: J. Aoe, An Efficient Digital Search Algorithm by Using a Double-Array Structure, 1989.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onn_lightning.compiled import kernel

BASE, WORD, COST = 0, 1, 2
NO_WORD_COST = 2**31 - 1
ROOT = 1
"""BASE of the root."""

_PATIENCE = 256
"""Places tried for a node with several children before the search moves on for good."""

Checks = npt.NDArray[Any]
Cells = npt.NDArray[np.int32]


def build_trie(
    symbols: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    word_ids: npt.NDArray[np.int32],
    costs: npt.NDArray[np.int32],
    num_symbols: int,
) -> tuple[Checks, Cells]:
    """Lay out the trie.

    Args:
        symbols: [sum of lengths] the words' symbols (1..num_symbols-1), one word after the other,
            sorted so that words with a common prefix are neighbours, the shorter first.
        offsets: [words + 1] where each word begins in `symbols`.
        word_ids: [words] what to store at each word's end (positive).
        costs: [words] the cost stored beside it.
        num_symbols: one more than the largest symbol.
    Returns:
        CHECK [cells], of the smallest unsigned type that holds the symbols, and [cells, 3] int32 (BASE,
        WORD, COST).
    """
    checks, cells = _build(symbols, offsets, word_ids, costs, num_symbols)
    return checks.astype(np.uint16 if num_symbols <= 2**16 else np.uint32), cells


@kernel
def _build(
    symbols: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    word_ids: npt.NDArray[np.int32],
    costs: npt.NDArray[np.int32],
    num_symbols: int,
) -> tuple[npt.NDArray[np.int32], Cells]:
    num_words = len(offsets) - 1
    capacity = len(symbols) + len(symbols) // 4 + 2 * num_symbols + 2
    checks = np.zeros(capacity, dtype=np.int32)
    cells = np.zeros((capacity, 3), dtype=np.int32)
    cells[:, COST] = NO_WORD_COST
    is_base = np.zeros(capacity, dtype=np.bool_)
    is_base[0] = True
    next_free = np.arange(capacity + 1).astype(np.int32)  # a used cell points at or before the next free one
    next_free[0] = 1

    # Nodes wait in breadth-first order; each is the run [low, high) of words that share its prefix. The
    # root's cell is 0 until it is done.
    waiting = np.zeros((len(symbols) + 1, 4), dtype=np.int32)  # cell, low, high, depth
    waiting[0, 2] = num_words
    num_waiting = 1
    child_symbols = np.empty(num_symbols, dtype=np.int32)
    child_lows = np.empty(num_symbols + 1, dtype=np.int32)
    first_tried = 1
    largest_base = 0

    done = 0
    while done < num_waiting:
        node, low, high, depth = waiting[done, 0], waiting[done, 1], waiting[done, 2], waiting[done, 3]
        done += 1
        if offsets[low + 1] - offsets[low] == depth:
            cells[node, WORD] = word_ids[low]
            cells[node, COST] = costs[low]
            low += 1
        num_children = 0
        for word in range(low, high):
            symbol = symbols[offsets[word] + depth]
            if num_children == 0 or symbol != child_symbols[num_children - 1]:
                child_symbols[num_children] = symbol
                child_lows[num_children] = word
                num_children += 1
        if num_children == 0:
            continue
        child_lows[num_children] = high

        smallest = child_symbols[0]
        for child in range(1, num_children):
            smallest = min(smallest, child_symbols[child])
        place = smallest if num_children == 1 else max(smallest, first_tried)
        tried = 0
        while True:
            free = place
            while next_free[free] != free:
                next_free[free] = next_free[next_free[free]]
                free = next_free[free]
            base = free - smallest
            if base + num_symbols >= capacity:
                checks = np.concatenate((checks, np.zeros_like(checks)))
                more_cells = np.zeros_like(cells)
                more_cells[:, COST] = NO_WORD_COST
                cells = np.concatenate((cells, more_cells))
                is_base = np.concatenate((is_base, np.zeros_like(is_base)))
                more_free = np.arange(2 * capacity + 1).astype(np.int32)
                more_free[:capacity] = next_free[:capacity]
                next_free = more_free
                capacity *= 2
            fits = base > 0 and not is_base[base]
            for child in range(num_children):
                if not fits:
                    break
                fits = checks[base + child_symbols[child]] == 0
            if fits:
                break
            tried += 1
            place = free + 1
        if tried > _PATIENCE:
            first_tried = place

        cells[node, BASE] = base
        is_base[base] = True
        largest_base = max(largest_base, base)
        for child in range(num_children):
            cell = base + child_symbols[child]
            checks[cell] = child_symbols[child]
            next_free[cell] = cell + 1
            waiting[num_waiting, 0] = cell
            waiting[num_waiting, 1] = child_lows[child]
            waiting[num_waiting, 2] = child_lows[child + 1]
            waiting[num_waiting, 3] = depth + 1
            num_waiting += 1
    size = largest_base + num_symbols
    cells[0, BASE] = 0
    return checks[:size].copy(), cells[:size].copy()
