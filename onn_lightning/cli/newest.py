"""Which checkpoint all ranks go on from: rank 0 decides, before anything is built.

Notable:
- Ranks may see different folders (caches of network file systems); each choosing for itself, they would train
  different networks or wait for each other for ever. The model's shape depends on the choice, so it is made
  before there is a process group.
- Processes that a rank launches itself (Lightning's launcher) inherit the choice in an environment variable,
  which counts for the children of the very process that set it.
- Ranks that are launched from outside (torchrun, srun, a node each) ask rank 0 through a store at the address
  of their process group. In rank 0 torch serves both from one socket; under torchrun it is the agent's.
- What rank 0 refuses, all refuse with its words.
- A rank that does not see the file waits, since such caches are a minute old at most, and then names itself
  and the file.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.distributed import PrefixStore, Store, TCPStore

from onn_lightning.cli.errors import UsageError

_INHERITED = "ONN_LIGHTNING_CHECKPOINT"
_SECONDS_TO_ANSWER = 600.0  # until rank 0 has compared the checksums of a large checkpoint
_SECONDS_TO_LEAVE = 10.0
_SECONDS_TO_SEE = 90.0  # network file systems keep what they know of a folder for up to a minute


@dataclass(frozen=True)
class Ranks:
    """The processes that have to agree, each launched from outside.

    Args:
        rank: of this one.
        count: of all.
        address: host of rank 0.
        port: of its process group.
    """

    rank: int
    count: int
    address: str
    port: int


class Agreement:
    """What the ranks agreed on; kept until the process group is made, since it serves those who still ask.

    Args:
        choose: looks at the folder; raises `UsageError` if nothing there can be used.
        folder: of the run, where this rank sees it; the choice lies in it.
        num_nodes: of the run.
        seconds_to_see: how long a rank waits for a file that it does not see.
    Raises:
        UsageError: what rank 0 raised, or that it cannot be asked, or that this rank does not see its choice.
    """

    def __init__(
        self,
        choose: Callable[[], Path | None],
        folder: Path,
        num_nodes: int = 1,
        seconds_to_see: float = _SECONDS_TO_SEE,
    ) -> None:
        self._store: Store | None = None
        inherited, ranks = _inherited(), _ranks(num_nodes)
        if inherited is not None:
            name = inherited
        elif ranks is None or ranks.count < 2:
            name = _name(choose(), folder)
        elif ranks.rank == 0:
            name = self._answer(choose, folder, ranks)
        else:
            name = self._ask(ranks)
        os.environ[_INHERITED] = f"{os.getpid()}:{name}"
        self.checkpoint = folder / name if name else None
        """The choice; None: there is nothing to go on from."""
        if self.checkpoint is not None:
            rank = ranks.rank if ranks is not None else int(os.environ.get("LOCAL_RANK", "0"))
            _wait_until_seen(self.checkpoint, rank, seconds_to_see)

    def _answer(self, choose: Callable[[], Path | None], folder: Path, ranks: Ranks) -> str:
        self._store = _store(ranks)
        try:
            name = _name(choose(), folder)
        except UsageError as error:
            self._store.set("choice", json.dumps({"refused": str(error)}))
            deadline = time.monotonic() + _SECONDS_TO_LEAVE
            while self._store.add("asked", 0) < ranks.count - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            raise
        self._store.set("choice", json.dumps({"name": name}))
        return name

    def _ask(self, ranks: Ranks) -> str:
        try:
            self._store = _store(ranks)
            self._store.wait(["choice"], timedelta(seconds=_SECONDS_TO_ANSWER))
            answer = json.loads(self._store.get("choice"))
            self._store.add("asked", 1)
        except (RuntimeError, ValueError) as error:  # torch's DistError and its kinds
            raise UsageError(
                f"rank {ranks.rank} on {socket.gethostname()}: rank 0 did not say which checkpoint to go on "
                f"from ({ranks.address}:{ranks.port}): see what it says, and whether its host can be reached"
            ) from error
        if "refused" in answer:
            raise UsageError(f"rank 0: {answer['refused']}")
        return str(answer["name"])


def _store(ranks: Ranks) -> Store:
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        ranks.address,
        ranks.port,
        is_master=ranks.rank == 0 and not of_agent,
        timeout=timedelta(seconds=_SECONDS_TO_ANSWER),
        wait_for_workers=False,
        multi_tenant=True,  # the process group, made later in this process, shares the server
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the agent's store outlives its workers
    return PrefixStore(f"onn_lightning/checkpoint/{attempt}", store)


def _ranks(num_nodes: int) -> Ranks | None:
    """The ranks that were launched from outside; None: there are no others, or this process launches them."""
    given = os.environ
    address, port = given.get("MASTER_ADDR"), given.get("MASTER_PORT")
    if address and port and "RANK" in given and "WORLD_SIZE" in given:
        return Ranks(int(given["RANK"]), int(given["WORLD_SIZE"]), address, int(port))
    if given.get("SLURM_NTASKS", "1") != "1" and SLURMEnvironment.detect():
        slurm = SLURMEnvironment()
        return Ranks(slurm.global_rank(), slurm.world_size(), slurm.main_address, slurm.main_port)
    if (
        address and port and num_nodes > 1
    ):  # one process is started on each node, and launches those beside it
        return Ranks(int(given.get("NODE_RANK", "0")), num_nodes, address, int(port))
    return None


def _inherited() -> str | None:
    owner, _, name = os.environ.get(_INHERITED, "").partition(":")
    is_launched = os.environ.get("LOCAL_RANK", "0") != "0" and owner == str(os.getppid())
    return name if is_launched else None


def _name(checkpoint: Path | None, folder: Path) -> str:
    return "" if checkpoint is None else checkpoint.relative_to(folder).as_posix()


def _wait_until_seen(checkpoint: Path, rank: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not checkpoint.exists():
        if time.monotonic() >= deadline:
            raise UsageError(
                f"rank {rank} on {socket.gethostname()} does not see {checkpoint}, from which rank 0 goes "
                "on: all ranks need the same folder (trainer.default_root_dir on a shared file system)"
            )
        time.sleep(0.2)
        if checkpoint.parent.is_dir():
            os.listdir(checkpoint.parent)  # makes a network file system look
