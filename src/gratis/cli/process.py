"""What the command line asks of its own process, before anything heavy is imported."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of mallopt, as malloc.h numbers them."""
LARGEST_MMAP_THRESHOLD = 32 * 2**20
NEVER = 2**31 - 1


def prepare() -> None:
    """Let threads that wait sleep soon, and memory that is freed stay; what the environment says
    of either comes first.
    """
    # on shared cores long spinning makes the steps of small nets several times slower, as
    # benchmarks/thread_waiting.py shows
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        _keep_memory()


def _keep_memory() -> None:
    """glibc hands the end of its heap back to the system at each step and takes it anew, page by
    page: up to a third of a small network's time (benchmarks/growth.py). Other C libraries have no
    mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(TRIM_THRESHOLD, NEVER)
