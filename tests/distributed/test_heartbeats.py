"""Whose fault it is that no rank moves, told from their signs of life."""

from __future__ import annotations

from dataclasses import replace

from torch.distributed import HashStore

from onn_lightning.distributed.heartbeats import LOADING, Heartbeats, Progress, Verdict, judge

LIMITS = (10.0, 60.0)
STUCK = Progress(moves=40, step=9, phase="backward", still=12.0, slow=False, beat=5)


def after(*ranks: Progress | None) -> Verdict | None:
    then = [None if rank is None else replace(rank, beat=rank.beat + 1) for rank in ranks]
    return judge(list(ranks), then, LIMITS)


def test_the_rank_that_is_behind_is_named_with_what_it_does() -> None:
    verdict = after(STUCK, replace(STUCK, moves=39, phase=LOADING))
    assert verdict is not None and verdict.ranks == (1,)
    assert (
        verdict.text == "rank 1 (optimizer step 10, loading data): has not moved for 12 s while others wait"
    )


def test_a_rank_that_sends_nothing_is_named_however_far_it_is() -> None:
    verdict = judge([STUCK, STUCK], [replace(STUCK, beat=6), STUCK], LIMITS)
    assert verdict is not None and verdict.ranks == (1,)
    assert "no sign of life" in verdict.text
    verdict = after(STUCK, None)
    assert verdict is not None and verdict.ranks == (1,)


def test_slow_work_has_a_limit_of_its_own() -> None:
    saving = replace(STUCK, moves=39, phase="saving", slow=True)
    assert after(STUCK, saving) is None
    assert after(STUCK, replace(saving, still=61.0)) is not None


def test_nobody_is_to_blame_where_all_wait_for_data_or_the_others_have_come_to_their_end() -> None:
    loading = replace(STUCK, phase=LOADING)
    assert after(loading, loading) is None
    assert after(replace(STUCK, still=1.0), replace(STUCK, left=True)) is None
    assert (
        judge(
            [STUCK, replace(STUCK, left=True)],
            [replace(STUCK, beat=6, still=1.0), replace(STUCK, left=True)],
            LIMITS,
        )
        is None
    )


def test_the_first_verdict_is_that_of_all_ranks() -> None:
    store = HashStore()
    one, other = Heartbeats(store, 0, 2), Heartbeats(store, 1, 2)
    assert other.verdict() is None and one.of_all() == [None, None]
    one.send(STUCK)
    assert other.of(0) == STUCK
    first = Verdict((1,), "rank 1 failed: disk")
    assert one.accuse(first) == first
    assert other.accuse(Verdict((0,), "rank 0: no sign of life")) == first == other.verdict()
