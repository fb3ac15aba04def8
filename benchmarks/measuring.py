"""What the scripts beside this file share: paired rounds, medians, and what they ran on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import gratis
from gratis.answers import processor


def paired(
    jobs: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of each job, all of them run in turn, `rounds` times: A B C A B C ..."""
    for job in jobs.values():
        for _ in range(warm_up):
            job()
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            clock = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - clock)
    return {name: statistics.median(times) for name, times in taken.items()}


def setting() -> str:
    """Machine, threads, versions and load: what a ratio was measured on."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    load = os.getloadavg()[0]
    return (
        f"{where}; {torch.get_num_threads()} threads of {os.cpu_count()}, load before {load:.1f}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"gratis {gratis.__version__}"
    )


def held() -> int:
    """Bytes of this process that are no pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
