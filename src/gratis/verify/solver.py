"""Solvers in processes of their own, killed when their time is over; which are installed."""

import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

LINEAR, INTEGER = "highspy", "pyscipopt"
INSTALL = "pip install 'gratis[verify]'"

LINEAR_SCRIPT = Path(__file__).with_name("linear_process.py")
INTEGER_SCRIPT = Path(__file__).with_name("integer_process.py")


def installed() -> tuple[str, ...]:
    """Those of the two solver packages that can be imported."""
    return tuple(name for name in (LINEAR, INTEGER) if importlib.util.find_spec(name))


def answers(script: Path, job: object, seconds: float) -> list[Any]:
    """What the process `script` writes about `job`, until it ends or `seconds` are over.

    The script reads one pickle and writes any number. Solvers overshoot their own limits (HiGHS
    by more than its double), so the process is killed; what it wrote before counts. So it does
    where a signal ended it, for lack of memory say. RuntimeError with its last words where it
    fails by itself.
    """
    found: list[Any] = []
    # -P: this folder's modules shall not stand in for others of the same name
    command = [sys.executable, "-P", str(script)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, env=settings
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        killed = threading.Event()

        def kill() -> None:
            killed.set()
            process.kill()

        timer = threading.Timer(max(seconds, 0.0), kill)
        timer.start()
        try:
            process.stdin.write(pickle.dumps(job))
            process.stdin.close()
            while True:
                found.append(pickle.load(process.stdout))
        except (EOFError, pickle.UnpicklingError, BrokenPipeError):
            process.wait()
        finally:
            timer.cancel()
            process.kill()
        if process.returncode > 0 and not killed.is_set():
            words.seek(0)
            said = words.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"the solver's process {script.name} ended with status {process.returncode}: "
                f"{said[-1] if said else 'it said nothing'}"
            )
    return found
