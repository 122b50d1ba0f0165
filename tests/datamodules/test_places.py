"""Resume over another number of ranks and workers: every sample once an epoch, none lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import (
    Documents,
    Numbered,
    assert_nothing_lost_or_given_twice,
    stream_of,
    targets_of,
)

from datamodules.omni import OmniDataModule
from datamodules.places import Lane, ReaderPlace, Run, SourcePlace, divided, fresh_places
from datamodules.sources import Source
from datamodules.stream import BatchOrder, Replica


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Source]:
    """One to three sources of documents of up to six rows."""
    return {
        name: Documents(
            draw(st.lists(st.integers(1, 90), min_size=1, max_size=12)),
            number,
            draw(st.sampled_from([0.3, 1.0, 2.5])),
        )
        for number, name in enumerate("abc"[: draw(st.integers(1, 3))])
    }


@given(
    mixtures(),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 8)), min_size=2, max_size=5),
    st.integers(0, 3),
    st.data(),
)
@settings(max_examples=25)
def test_whatever_the_readers_every_sample_comes_once_an_epoch(
    sources: dict[str, Source], topologies: list[tuple[int, int, int]], seed: int, data: st.DataObject
) -> None:
    """Several epochs, documents cut into pieces, readers that get unequally far."""
    stream = stream_of(sources, seed=seed)
    seen: Counter[int] = Counter()
    weights = {name: source.weight for name, source in sources.items()}
    places: list[ReaderPlace] = []
    for ranks, workers, batches in topologies:
        readers = ranks * workers
        places = divided(places, readers) if places else fresh_places(weights, readers)
        assert_nothing_lost_or_given_twice(stream, seen, places)
        stream.begin_at(places, 0)
        for _ in range(batches * readers):
            reader = data.draw(st.integers(0, readers - 1))
            delivery = stream[BatchOrder(reader, tuple(weights.values()))]
            places[reader] = ReaderPlace.from_plain(delivery.place)
            seen.update(targets_of(delivery.batch))
        assert_nothing_lost_or_given_twice(stream, seen, places)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_lanes_stay_few_however_often_the_readers_change(counts: list[int]) -> None:
    places = fresh_places({"a": 1.0}, counts[0])
    places = [  # everybody is somewhere else
        ReaderPlace({"a": SourcePlace((Lane(7 * reader * counts[0] + reader, counts[0]),))}, (1.0,))
        for reader in range(counts[0])
    ]
    for count in counts[1:]:
        places = divided(places, count)
        shares = [sum(map(len, place.sources["a"].lanes[:-1])) for place in places]
        assert max(shares) - min(shares) <= 1
    assert sum(len(place.sources["a"].lanes) for place in places) <= 2 * sum(counts)


def test_pieces_of_one_document_go_back_as_one_run_to_one_reader() -> None:
    place = SourcePlace((Lane(9, 1),), runs=(Run(4, 3),))
    reader = ReaderPlace({"a": place}, (1.0,))
    reader.buffered.sources.extend([0, 0, 0, 0])
    reader.buffered.positions.extend([4, 2, 4, 4])
    reader.buffered.numbers.extend([2, 1, 0, 1])
    first, second = (each.sources["a"] for each in divided([reader], 2))
    assert first.runs == (Run(2, 1, 2),)
    assert second.runs == (Run(4, 0, None),)
    assert (first.lanes, second.lanes) == ((Lane(9, 2),), (Lane(10, 2),))


def test_what_was_left_over_comes_before_anything_new() -> None:
    sources: dict[str, Source] = {"a": Documents([5] * 400)}
    stream = stream_of(sources)
    places = fresh_places({"a": 1.0}, 3)
    stream.begin_at(places, 0)
    for _ in range(9):  # only one of three gets ahead
        places[0] = ReaderPlace.from_plain(stream[BatchOrder(0, (1.0,))].place)
    front = places[0].sources["a"].lanes[0].start
    (place,) = divided(places, 1)
    stream.begin_at([place], 0)
    while len(place.sources["a"].lanes) > 1:
        assert place.sources["a"].lanes[-1].start == front
        place = ReaderPlace.from_plain(stream[BatchOrder(0, (1.0,))].place)


LENGTHS = [1 + (number * 37) % 90 for number in range(24)]


def module_of(num_workers: int = 0, **settings: Any) -> OmniDataModule:
    train: dict[str, Source] = {"a": Documents(LENGTHS), "b": Documents(LENGTHS[:9], 1, weight=0.5)}
    settings = {"row_length": 16, "rows_per_batch": 2, "buffer_size": 12} | settings
    module = OmniDataModule([Numbered()], train, num_workers=num_workers, **settings)
    module.setup("fit")
    return module


def check(module: OmniDataModule, seen: Counter[int], state: dict[str, Any]) -> None:
    stream = stream_of(module.splits["train"])
    assert_nothing_lost_or_given_twice(stream, seen, [ReaderPlace.from_plain(p) for p in state["places"]])


def through_a_file(state: dict[str, Any], path: Path) -> dict[str, Any]:
    torch.save(state, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("workers", [(2, 0, 3), (0, 2, 1)])
def test_loaders_with_other_numbers_of_workers_go_on_without_loss(
    tmp_path: Path, workers: tuple[int, ...]
) -> None:
    seen: Counter[int] = Counter()
    state: dict[str, Any] = {}
    for num_workers in workers:
        module = module_of(num_workers)
        loader = module.train_dataloader()
        if state:
            loader.load_state_dict(state)
            assert len(loader.state_dict()["places"]) == max(1, num_workers)
        for batch in islice(loader, 23):
            seen.update(targets_of(batch))
        state = through_a_file(loader.state_dict(), tmp_path / "state.pt")
        check(module, seen, state)
    assert max(seen.values()) > 1  # some of it in a second epoch


@pytest.mark.parametrize("num_workers", [0, 2])
def test_from_divided_places_a_resume_is_bit_for_bit_again(tmp_path: Path, num_workers: int) -> None:
    before = module_of(3).train_dataloader()
    for _ in islice(before, 7):
        pass
    loader = module_of(num_workers).train_dataloader()
    loader.load_state_dict(before.state_dict())
    for _ in islice(loader, 3):
        pass
    state = through_a_file(loader.state_dict(), tmp_path / "state.pt")
    assert any(source["runs"] for place in state["places"] for source in place["sources"].values())
    following = [targets_of(batch) for batch in islice(loader, 15)]
    resumed = module_of(num_workers).train_dataloader()
    resumed.load_state_dict(state)
    assert [targets_of(batch) for batch in islice(resumed, 15)] == following


def test_no_worker_and_one_worker_are_the_same_readers() -> None:
    loader = module_of(0).train_dataloader()
    for _ in islice(loader, 7):
        pass
    there = module_of(1).train_dataloader()
    there.load_state_dict(loader.state_dict())
    for here, other in zip(islice(loader, 9), there, strict=False):
        assert targets_of(here) == targets_of(other)


def test_the_state_does_not_grow_with_what_was_read_nor_with_every_change(tmp_path: Path) -> None:
    sizes: list[int] = []
    state: dict[str, Any] = {}
    for turn in range(12):
        loader = module_of(0, seed=3).train_dataloader()
        loader.replica = Replica()
        if state:
            loader.load_state_dict(state)
        for _ in islice(loader, 60):
            pass
        state = loader.state_dict()
        places = divided([ReaderPlace.from_plain(place) for place in state["places"]], 2 + turn % 3)
        places = divided(places, 1)
        state["places"] = [place.plain() for place in places]
        torch.save(state, tmp_path / "state.pt")
        sizes.append((tmp_path / "state.pt").stat().st_size)
    assert max(sizes[6:]) <= 1.2 * max(sizes[:3])


def run_ranks(count: int, task: Callable[..., None], *args: Any) -> None:
    """Run `task(number, count, *args)` as that many processes; fails if one fails or hangs."""
    processes = [get_context("fork").Process(target=task, args=(n, count, *args)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def _rank(number: int, count: int, folder: Path, turn: int, num_workers: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{turn}", rank=number, world_size=count)
    module = module_of(num_workers)
    module._replica = lambda: Replica(number, count)  # type: ignore[method-assign]
    loader = module.train_dataloader()
    if turn:
        loader.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    given = [target for batch in islice(loader, 8 + turn) for target in targets_of(batch)]
    torch.save(given, folder / f"given{turn}-{number}.pt")
    state = loader.state_dict()
    dist.barrier()
    if number == 0:
        torch.save(state, folder / "state.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_then_one_then_three_share_the_data_without_loss(tmp_path: Path) -> None:
    seen: Counter[int] = Counter()
    for turn, (ranks, workers) in enumerate([(2, 2), (1, 0), (3, 1), (2, 0)]):
        run_ranks(ranks, _rank, tmp_path, turn, workers)
        for number in range(ranks):
            seen.update(torch.load(tmp_path / f"given{turn}-{number}.pt", weights_only=True))
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert len(state["places"]) == ranks * max(1, workers)
        check(module_of(), seen, state)


def test_a_state_of_an_older_version_is_refused() -> None:
    loader = module_of().train_dataloader()
    with pytest.raises(ValueError, match=r"its state has format 1, this version reads 2"):
        loader.load_state_dict({"num_workers": 0, "replicas": {0: {}}})
