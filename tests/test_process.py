"""What the command line asks of its own process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from gratis.cli.process import prepare
if sys.argv[1] == "prepared":
    prepare()
import numpy as np
def steps(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        kept = [np.ones(2**18) for _ in range(10)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
steps(10)
print(steps(10))
"""


def faults(how: str, **environment: str) -> int:
    """Pages taken anew in ten steps, each of which frees the 20 MB that it wrote."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env=inherited | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other mallocs")
def test_freed_memory_stays_unless_the_environment_says_otherwise() -> None:
    if (as_it_is := faults("not")) < 10_000:
        pytest.skip(f"this C library hands nothing back: {as_it_is} pages taken anew")
    assert faults("prepared") < as_it_is / 20
    asked = faults("prepared", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="33554432")
    assert asked > as_it_is / 2


def test_the_environments_way_of_waiting_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from gratis.cli.process import prepare

    for name, given in (("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setenv(name, given)
        prepare()
        assert os.environ.get("GOMP_SPINCOUNT") == ("7" if name == "GOMP_SPINCOUNT" else None)
    monkeypatch.delenv("GOMP_SPINCOUNT")
    prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
