"""`Heartbeats`: what each rank is doing, told to the others through the store of their process group.

Notable:
- A sign of life says how far the training of a rank is, not merely that its process runs.
- Clocks of machines are not compared: a rank tells for how long it has stood still, and whoever reads finds
  out by reading twice whether it still sends.
- The first verdict on why the run cannot go on is the one of all ranks.
- Plain text and numbers in the store; nothing is unpickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from torch.distributed import Store

LOADING = "loading data"
"""The phase in which a rank may wait for as long as it likes, if all do."""


@dataclass(frozen=True)
class Progress:
    """How far a rank is.

    Args:
        moves: pieces of work that it has begun since the start; comparable between ranks.
        step: optimizer steps done.
        phase: what it is doing, in words.
        still: seconds since its last move.
        slow: whether what it is doing may take long.
        beat: number of this sign of life.
        left: whether it has come to its end.
    """

    moves: int
    step: int
    phase: str
    still: float
    slow: bool
    beat: int
    left: bool = False


@dataclass(frozen=True)
class Verdict:
    """Why the run cannot go on.

    Args:
        ranks: those that it is about.
        text: one line that names them.
    """

    ranks: tuple[int, ...]
    text: str


class Heartbeats:
    """One rank's connection to the others' signs of life; for one thread.

    All methods raise RuntimeError where whoever holds the store is gone.

    Args:
        store: a connection of its own to what all ranks see.
        rank: of this process.
        world_size: number of ranks.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store = store
        self._keys = [f"heartbeat/{other}" for other in range(world_size)]
        self._verdict = "heartbeat/verdict"

    def send(self, progress: Progress) -> None:
        """Tell the others how far this rank is."""
        self._store.set(self._keys[self.rank], json.dumps(asdict(progress)))

    def of(self, rank: int) -> Progress | None:
        """The last sign of life of a rank, None where it has never sent one."""
        if not self._store.check([self._keys[rank]]):
            return None
        return Progress(**json.loads(self._store.get(self._keys[rank])))

    def of_all(self) -> list[Progress | None]:
        """The last signs of life of all ranks."""
        return [self.of(rank) for rank in range(self.world_size)]

    def accuse(self, verdict: Verdict) -> Verdict:
        """Give a verdict.

        Returns:
            The one that counts: another rank may have been faster.
        """
        given = self._store.compare_set(self._verdict, "", json.dumps(asdict(verdict)))
        return _verdict(given)

    def verdict(self) -> Verdict | None:
        """The verdict of whichever rank, None while there is none."""
        if not self._store.check([self._verdict]):
            return None
        return _verdict(self._store.get(self._verdict))


def judge(
    first: list[Progress | None], then: list[Progress | None], limits: tuple[float, float]
) -> Verdict | None:
    """Whose fault it is that a rank does not move.

    Args:
        first: signs of life of all ranks.
        then: those read so much later that every rank that lives has sent another one.
        limits: seconds that a rank may stand still in ordinary phases, and in slow ones.
    Returns:
        None where nobody has stood still for longer than it may, or where all alike wait for data: then none
        of them waits for another.
    """
    silent = [
        rank
        for rank, (before, now) in enumerate(zip(first, then, strict=True))
        if now is None or (not now.left and before is not None and before.beat == now.beat)
    ]
    if silent:
        seen = ", ".join(_where(rank, then[rank]) for rank in silent)
        return Verdict(tuple(silent), f"{seen}: no sign of life, it was killed, is frozen or out of reach")
    running = {rank: now for rank, now in enumerate(then) if now is not None and not now.left}
    if not running:
        return None
    least = min(progress.moves for progress in running.values())
    behind = {rank: progress for rank, progress in running.items() if progress.moves == least}
    all_wait = len(behind) == len(running) and all(p.phase == LOADING for p in behind.values())
    if all_wait or any(p.still < limits[p.slow] for p in behind.values()):
        return None
    longest = min(progress.still for progress in behind.values())
    seen = ", ".join(_where(rank, progress) for rank, progress in behind.items())
    return Verdict(tuple(behind), f"{seen}: has not moved for {longest:.0f} s while others wait")


def _where(rank: int, progress: Progress | None) -> str:
    if progress is None:
        return f"rank {rank} (never heard of)"
    return f"rank {rank} (optimizer step {progress.step + 1}, {progress.phase})"


def _verdict(content: bytes) -> Verdict:
    plain = json.loads(content)
    return Verdict(tuple(plain["ranks"]), plain["text"])
