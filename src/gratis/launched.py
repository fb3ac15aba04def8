"""What torchrun tells each process that it starts, and how these make sure of each other."""

import os
import socket
import time
import uuid
from datetime import timedelta
from typing import Any

PAUSE_SECONDS = 0.02


def launched_together() -> bool:
    """Whether torchrun, or somebody who sets its variables, started more than this process."""
    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    return started and int(os.environ["WORLD_SIZE"]) > 1


def rank_and_world() -> tuple[int, int]:
    """This is process number `rank` of `world`, as torchrun says; (0, 1) without torchrun."""
    if not launched_together():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def launch() -> str | None:
    """What tells one start of torchrun from another and stays the same through its restarts.

    The job's --rdzv-id where one was given, else this machine's torchrun; None without torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    id = os.environ["TORCHELASTIC_RUN_ID"]
    return id if id != "none" else f"torchrun {os.getppid()} on {socket.gethostname()}"


def meet(store: Any, rank: int, world: int, patience: timedelta) -> str:
    """A word that only the processes of this very start share, once all have appeared.

    store: torch's, which torchrun keeps through restarts: what processes of an earlier start left
    in it must not be taken for an answer. So each asks under a name of its own, made up now, and
    waits for process 0's answer to that name.
    Raises ValueError where the others count another number of processes, or do not appear in time.
    """
    deadline = time.monotonic() + patience.total_seconds()
    own = uuid.uuid4().hex
    if rank:
        store.set(f"hello-{rank}", own)
        _wait(store, f"answer-{own}", 0, world, deadline)
        word, counted = store.get(f"answer-{own}").decode().split()
        store.set(f"{word}-{rank}", str(world))
        _check_counts(rank, world, 0, int(counted))
        return str(word)
    missing = set(range(1, world))
    while missing:
        for other in sorted(missing):
            if store.check([f"{own}-{other}"]):
                _check_counts(0, world, other, int(store.get(f"{own}-{other}")))
                missing.remove(other)
            elif store.check([f"hello-{other}"]):
                store.set(f"answer-{store.get(f'hello-{other}').decode()}", f"{own} {world}")
        if missing:
            _pause(min(missing), world, deadline)
    return own


def _wait(store: Any, key: str, other: int, world: int, deadline: float) -> None:
    while not store.check([key]):
        _pause(other, world, deadline)


def _pause(other: int, world: int, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise ValueError(
            f"process {other} of {world} did not appear in time; look at its machine's output, or "
            "let the others wait longer: --set engine.patience_seconds=SECONDS"
        )
    time.sleep(PAUSE_SECONDS)


def _check_counts(rank: int, world: int, other: int, counted: int) -> None:
    if world != counted:
        raise ValueError(
            f"process {rank} was started as one of {world} processes and process {other} as one "
            f"of {counted}; start all of them with the same numbers of machines and processes"
        )
