"""A double-array trie of words over small integer symbols: one cell, one cache line a step.

Notable:
- A cell is four int32 side by side: BASE, CHECK, WORD, COST. The child of node n under symbol s is
  cell `BASE[n] + s`, and it is there if that cell's CHECK is n: one random memory access a step
  tells whether the path goes on, whether a word ends there, which, and what it costs.
- Built breadth first, so that the nodes with thousands of children come while the array is empty;
  nodes with one child, the great majority, then fill the holes. 349,000 words take well under a
  second.
- Cell 0 is the root; symbol 0 belongs to no word, so no path leads through it.

Source: J. Aoe, An Efficient Digital Search Algorithm by Using a Double-Array Structure, 1989.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datamodules.text.compiled import kernel

BASE, CHECK, WORD, COST = 0, 1, 2, 3
_PATIENCE = 256
"""Places tried for a node with several children before the search moves on for good."""

Cells = npt.NDArray[np.int32]


@kernel
def build_cells(
    symbols: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    word_ids: npt.NDArray[np.int32],
    costs: npt.NDArray[np.int32],
    num_symbols: int,
) -> Cells:
    """Lay out the trie.

    Args:
        symbols: [sum of lengths] the words' symbols (1..num_symbols-1), one word after the other,
            sorted so that words with a common prefix are neighbours, the shorter first.
        offsets: [words + 1] where each word begins in `symbols`.
        word_ids: [words] what to store at each word's end (positive).
        costs: [words] the cost stored beside it.
        num_symbols: one more than the largest symbol.
    Returns:
        [cells, 4] int32 (BASE, CHECK, WORD, COST).
    """
    num_words = len(offsets) - 1
    capacity = len(symbols) + len(symbols) // 4 + 2 * num_symbols + 2
    cells = np.zeros((capacity, 4), dtype=np.int32)
    cells[:, CHECK] = -1
    next_free = np.arange(capacity + 1).astype(np.int32)  # a used cell points at or before the next free one
    next_free[0] = 1

    # Nodes wait in breadth-first order; each is the run [low, high) of words that share its prefix.
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
                grown = np.zeros((2 * capacity, 4), dtype=np.int32)
                grown[:capacity] = cells
                grown[capacity:, CHECK] = -1
                cells = grown
                more = np.arange(2 * capacity + 1).astype(np.int32)
                more[:capacity] = next_free[:capacity]
                next_free = more
                capacity *= 2
            fits = True
            for child in range(num_children):
                if cells[base + child_symbols[child], CHECK] != -1:
                    fits = False
                    break
            if fits:
                break
            tried += 1
            place = free + 1
        if tried > _PATIENCE:
            first_tried = place

        cells[node, BASE] = base
        largest_base = max(largest_base, base)
        for child in range(num_children):
            cell = base + child_symbols[child]
            cells[cell, CHECK] = node
            next_free[cell] = cell + 1
            waiting[num_waiting, 0] = cell
            waiting[num_waiting, 1] = child_lows[child]
            waiting[num_waiting, 2] = child_lows[child + 1]
            waiting[num_waiting, 3] = depth + 1
            num_waiting += 1
    return cells[: largest_base + num_symbols].copy()
