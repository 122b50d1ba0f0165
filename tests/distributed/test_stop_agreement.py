"""Ranks agree on a batch to stop at, however far one is ahead of another."""

from __future__ import annotations

import random
import threading
import time

import pytest
from torch.distributed import HashStore

from onn_lightning.distributed.stop_agreement import StopAgreement

BATCHES = 200


@pytest.mark.parametrize("seed", range(4))
def test_ranks_that_are_not_in_step_stop_at_one_batch(seed: int) -> None:
    store, chance = HashStore(), random.Random(seed)
    agreements = [StopAgreement(store, rank, 4) for rank in range(4)]
    stopped: dict[int, int] = {}

    def train(rank: int, pace: float) -> None:
        for batch in range(1, BATCHES + 1):
            time.sleep(pace)
            if agreements[rank].batch_done():
                stopped[rank] = batch
                return

    def look(rank: int, pace: float) -> None:
        while len(stopped) < len(agreements) and trainings[0].is_alive():
            time.sleep(pace)
            agreements[rank].look()

    trainings = [threading.Thread(target=train, args=(rank, chance.uniform(1e-3, 3e-3))) for rank in range(4)]
    looks = [threading.Thread(target=look, args=(rank, chance.uniform(0, 0.02))) for rank in range(4)]
    for thread in (*trainings, *looks):
        thread.start()
    time.sleep(0.02)
    agreements[chance.randrange(4)].ask(15)
    for thread in (*trainings, *looks):
        thread.join()
    assert sorted(stopped) == [0, 1, 2, 3]
    assert len(set(stopped.values())) == 1 and stopped[0] < BATCHES
    assert {agreement.reason for agreement in agreements} == {15}


def test_a_rank_that_is_at_its_end_is_not_waited_for() -> None:
    store = HashStore()
    here, gone = StopAgreement(store, 0, 2), StopAgreement(store, 1, 2)
    assert not gone.batch_done()
    gone.leave()
    here.ask(15)
    here.look()
    here.look()
    assert here.batch_done()


def test_one_rank_stops_at_the_end_of_the_batch_it_is_in() -> None:
    alone = StopAgreement(None, 0, 1)
    assert not alone.batch_done()
    alone.ask(2)
    assert alone.batch_done() and alone.reason == 2


def test_a_request_that_a_training_has_not_heeded_stops_the_next_one_of_the_same_ranks() -> None:
    store = HashStore()
    first = [StopAgreement(store, rank, 2) for rank in range(2)]
    for _ in range(5):
        assert not first[0].batch_done()
    first[0].ask(15)
    first[0].look()  # promises the sixth batch; then both go on from another checkpoint
    then = [StopAgreement(store, rank, 2) for rank in range(2)]
    for agreement in (*then, *then):
        agreement.look()
    assert [agreement.batch_done() for agreement in then] == [True, True]
