"""What runs on a GPU, tried where there is none: on a stand-in, in processes of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stand_in_gpu.build import environment, missing

CHECKS = sorted((Path(__file__).parent / "stand_in_gpu").glob("check_*.py"))


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no stand-in for a GPU: {missing()}")
@pytest.mark.parametrize("checks", CHECKS, ids=[path.stem for path in CHECKS])
def test_on_the_stand_in(checks: Path, tmp_path: Path) -> None:
    """Each file of checks is a run of pytest; what fails in it fails here, with its words."""
    command = [sys.executable, "-m", "pytest", str(checks), "--basetemp", str(tmp_path / "runs")]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env=environment(tmp_path / "library"),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
