"""Which neurons fire, over the whole life of a run: a history in bounded memory.

Notable:
- A column is the mean over `stride` snapshots. When all columns together are full, neighbours are merged and
  the stride doubles, so that the history always spans the run from its first snapshot to its last.
- Neighbouring neurons share a row: at most `ROWS` a kind of SBL, each block getting its part of them. Since
  a mean hides dead neurons, the share of neurons that did not fire at all is kept beside it, per SBL.
- A section of the history has one layout; when the network is grown or pruned a new section begins. Where
  there are more sections than room for columns, the oldest go.
- `neurons.npz` holds plain arrays (no pickle) and is written beside and renamed.

Letters: N neurons of all SBLs, S SBLs, R rows of a column, C columns.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onn_lightning.dashboard.files import write_whole

COLUMNS = 256  # of all sections together
ROWS = 512  # of all SBLs of one kind together
FILE = "neurons.npz"


@dataclass(frozen=True)
class Layout:
    """The SBLs of a network, in the order of `MoIETrunk.neuron_slices`.

    Args:
        sizes: number of neurons of each SBL, by its name; what follows its last dot is its kind.
    """

    sizes: dict[str, int]

    @cached_property
    def kinds(self) -> dict[str, list[str]]:
        """Names of the SBLs of each kind, in their order."""
        kinds: dict[str, list[str]] = {}
        for name in self.sizes:
            kinds.setdefault(name.rpartition(".")[2], []).append(name)
        return kinds

    @cached_property
    def bins(self) -> dict[str, int]:
        """Number of rows of each SBL."""
        share = {name: max(1, ROWS // len(names)) for names in self.kinds.values() for name in names}
        return {name: min(size, share[name]) for name, size in self.sizes.items()}

    def edges(self, name: str) -> NDArray[np.int64]:
        """[bins + 1] numbers of the neurons at which an SBL's rows begin, and its size."""
        size, bins = self.sizes[name], self.bins[name]
        return np.arange(bins + 1) * size // bins

    @cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """[R] number of the first of the neurons that share each row."""
        starts = np.cumsum([0, *self.sizes.values()])
        edges = [self.edges(name)[:-1] + start for name, start in zip(self.sizes, starts, strict=False)]
        return np.concatenate(edges)

    def row_slices(self) -> dict[str, slice]:
        """Where each SBL's rows stand in a column."""
        slices, start = {}, 0
        for name, count in self.bins.items():
            slices[name] = slice(start, start + count)
            start += count
        return slices


@dataclass(frozen=True)
class Column:
    """The mean over some snapshots that followed each other.

    Args:
        first_step, last_step: of the snapshots.
        snapshots: their number.
        activation: [R] fraction of tokens for which the neurons of a row fired; float16 once it is closed.
        silent: [S] fraction of an SBL's neurons that did not fire at all in a snapshot.
    """

    first_step: int
    last_step: int
    snapshots: int
    activation: NDArray[np.floating]
    silent: NDArray[np.floating]

    def merged(self, later: Column) -> Column:
        """The mean over the snapshots of both."""
        weight = later.snapshots / (self.snapshots + later.snapshots)

        def mean(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> NDArray[np.floating]:
            return ours.astype(np.float32) * np.float32(1 - weight) + theirs * np.float32(weight)

        return Column(
            self.first_step,
            later.last_step,
            self.snapshots + later.snapshots,
            mean(self.activation, later.activation),
            mean(self.silent, later.silent),
        )

    def closed(self) -> Column:
        """Half as large; a column that is still added to needs more digits."""
        return replace(
            self, activation=self.activation.astype(np.float16), silent=self.silent.astype(np.float16)
        )


@dataclass
class Section:
    """The columns of one layout, at least one."""

    layout: Layout
    columns: list[Column]


class NeuronHistory:
    """Activation of every neuron over the steps of a run."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self._stride = 1

    def __len__(self) -> int:
        """Number of columns."""
        return sum(len(section.columns) for section in self.sections)

    def add(self, step: int, sizes: Mapping[str, int], activation: NDArray[np.floating]) -> None:
        """Add a snapshot.

        Args:
            step: optimizer step it was taken at.
            sizes: number of neurons of each SBL, by name.
            activation: [N] fraction of the step's tokens for which each neuron fired.
        Raises:
            ValueError: if the sizes do not add up to N.
        """
        layout = self._layout(sizes)
        if sum(layout.sizes.values()) != len(activation):
            raise ValueError(f"{len(activation)} neurons, but sizes of {sum(layout.sizes.values())}")
        if not np.isfinite(activation).all():
            return
        column = _column(step, layout, activation)
        if not self.sections or self.sections[-1].layout is not layout:
            self._close_last()
            self.sections.append(Section(layout, [column]))
        elif (last := self.sections[-1].columns[-1]).snapshots < self._stride:
            self.sections[-1].columns[-1] = last.merged(column)
        else:
            self._close_last()
            self.sections[-1].columns.append(column)
        if len(self) > COLUMNS:
            self._halve()

    def _layout(self, sizes: Mapping[str, int]) -> Layout:
        """The newest layout where it has these sizes: what follows from them is worked out once."""
        if self.sections and self.sections[-1].layout.sizes == sizes:
            return self.sections[-1].layout
        return Layout(dict(sizes))

    def _close_last(self) -> None:
        if self.sections:
            columns = self.sections[-1].columns
            columns[-1] = columns[-1].closed()

    def _halve(self) -> None:
        self._stride *= 2
        for section in self.sections:
            old = section.columns
            pairs = [old[i].merged(old[i + 1]) if i + 1 < len(old) else old[i] for i in range(0, len(old), 2)]
            section.columns = [pair.closed() for pair in pairs[:-1]] + pairs[-1:]
        while len(self) > COLUMNS:
            del self.sections[0]

    # ---- as arrays, for the file and for checkpoints ------------------------------------------------

    def arrays(self) -> dict[str, NDArray]:
        """Everything, as plain arrays (copies)."""
        arrays: dict[str, NDArray] = {"stride": np.array(self._stride)}
        for number, section in enumerate(self.sections):
            columns = section.columns
            spans = [(c.first_step, c.last_step, c.snapshots) for c in columns]
            arrays |= {
                f"layout_{number}": np.array(list(json.dumps(section.layout.sizes).encode()), dtype=np.uint8),
                f"spans_{number}": np.array(spans, dtype=np.int64),  # [C, 3]
                f"activation_{number}": np.stack([c.closed().activation for c in columns]),  # [C, R]
                f"silent_{number}": np.stack([c.closed().silent for c in columns]),  # [C, S]
                f"open_activation_{number}": columns[-1].activation.copy(),  # [R], in all its digits
                f"open_silent_{number}": columns[-1].silent.copy(),  # [S]
            }
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> NeuronHistory:
        """The history of `arrays()`.

        Raises:
            ValueError: if the arrays are not those of a history.
        """
        history = cls()
        try:
            history._stride = int(arrays["stride"])
            for number in range(sum(name.startswith("layout_") for name in arrays)):
                history.sections.append(_section(arrays, number))
        except (KeyError, TypeError, IndexError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a history of neurons: {error!r}") from error
        return history

    def save(self, path: Path) -> None:
        """Write a file that is whole at any moment."""
        save_arrays(self.arrays(), path)

    @classmethod
    def load(cls, path: Path) -> NeuronHistory:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged or something else; the message names it.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls.from_arrays(dict(file))
        except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: damaged, or no history of neurons ({error})") from error


def save_arrays(arrays: Mapping[str, NDArray], path: Path) -> None:
    """Write the arrays of a history; the file is whole at any moment.

    Args:
        arrays: what `NeuronHistory.arrays` gave.
        path: file to write.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(dict[str, Any], arrays))
    write_whole(path, buffer.getvalue())


def _column(step: int, layout: Layout, activation: NDArray[np.floating]) -> Column:
    neurons = activation.astype(np.float32)
    starts = layout.row_starts
    rows = np.add.reduceat(neurons, starts) / np.diff(starts, append=len(neurons))
    sizes = np.array(list(layout.sizes.values()))
    silent = np.add.reduceat((neurons == 0).astype(np.float32), np.cumsum(sizes) - sizes) / sizes
    return Column(step, step, 1, rows.astype(np.float32), silent.astype(np.float32))


def _section(arrays: Mapping[str, NDArray], number: int) -> Section:
    sizes = json.loads(bytes(arrays[f"layout_{number}"].astype(np.uint8)).decode())
    layout = Layout({str(name): int(size) for name, size in sizes.items()})
    spans, activation, silent = (arrays[f"{part}_{number}"] for part in ("spans", "activation", "silent"))
    rows = sum(layout.bins.values())
    shapes = ((len(spans), 3), (len(spans), rows), (len(spans), len(layout.sizes)))
    if not len(spans) or (spans.shape, activation.shape, silent.shape) != shapes:
        raise ValueError(f"section {number} of a history of neurons: its arrays do not fit its layout")
    columns = [
        Column(int(first), int(last), int(count), activation[place], silent[place])
        for place, (first, last, count) in enumerate(spans)
    ]
    columns[-1] = replace(
        columns[-1],
        activation=arrays[f"open_activation_{number}"],
        silent=arrays[f"open_silent_{number}"],
    )
    return Section(layout, columns)
