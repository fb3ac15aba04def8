"""Processes that die, hang, leave and come: torchrun starts again, the run goes on and ends.

Each test runs the real command. Machines are torchruns of their own, which meet by address.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from gratis.run import Run
from tests.dying import assert_same, final_state
from tests.two_processes import needs_gloo, whole_recipe

pytestmark = [needs_gloo, pytest.mark.slow]

SETTINGS = ("engine.checkpoint_seconds=0", "engine.parts=2", "check.every=5", "budget.passes=30")
QUICK = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=120"
"""How long torchrun's machines wait for each other, in seconds; by default half a minute."""
PATIENCE_SECONDS = 120.0


class Machine:
    """A torchrun and its processes, here or on another host."""

    def __init__(self, command, log):
        self.log = log
        with log.open("w") as output:
            self.torchrun = subprocess.Popen(
                command,
                env=os.environ
                | {
                    "OMP_NUM_THREADS": "1",
                    "GLOO_SOCKET_IFNAME": "lo",
                    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def workers(self):
        """Its processes that train, by rank on this machine."""
        listed = Path(f"/proc/{self.torchrun.pid}/task/{self.torchrun.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]

    def lose(self):
        """As if the machine had lost its power."""
        # torchrun first, or it would notice its processes' end and arrange for another start
        for pid in [self.torchrun.pid, *self.workers()]:
            os.kill(pid, signal.SIGKILL)
        self.torchrun.wait()

    def ends_well(self):
        assert self.torchrun.wait(PATIENCE_SECONDS) == 0, self.log.read_text()


@pytest.fixture
def machines(tmp_path):
    """start(*torchrun's arguments, to train what) -> Machine; none outlives the test."""
    started = []

    def start(*arguments, recipe, more=()):
        written = tmp_path / "recipe.yaml"
        written.write_text(yaml.safe_dump(recipe.plain()))
        launcher = [sys.executable, "-m", "torch.distributed.run", *arguments]
        training = ["-m", "gratis", "train", str(written), "--out", str(tmp_path / "run")]
        command = [*launcher, *training, *more]
        machine = Machine(command, tmp_path / f"machine-{len(started)}.log")
        started.append(machine)
        return machine

    yield start
    for machine in started:
        if machine.torchrun.poll() is None:
            machine.lose()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(true, what):
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def under_way(out, updates=60):
    """Whether the run in `out` has a checkpoint and has logged so many updates since it began."""
    return Run(out).has_checkpoint and any(r.get("update", 0) >= updates for r in Run(out).log())


def resumptions(out):
    return [r for r in Run.open(out).log() if r["kind"] == "resumed"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run when nothing happens, on one machine of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = whole_recipe(*SETTINGS)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.plain()))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "gratis", "train", str(folder / "recipe.yaml"), "--out", str(folder / "run")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
    )  # fmt: skip
    return final_state(folder / "run")


def assert_close(ours, theirs):
    """The same run on another number of processes, where sums are rounded otherwise."""
    assert ours["updates"] == theirs["updates"]
    assert ours["budget"]["metered_passes"] == theirs["budget"]["metered_passes"]
    for key, value in theirs["model"].items():
        torch.testing.assert_close(ours["model"][key], value, rtol=0.05, atol=0.01)


def test_a_killed_process_costs_the_updates_since_the_checkpoint(machines, whole, tmp_path):
    one = machines("--standalone", "--nproc-per-node=2", "--max-restarts=2",
                   recipe=whole_recipe(*SETTINGS))  # fmt: skip
    until(lambda: under_way(tmp_path / "run"), "updates")
    os.kill(one.workers()[1], signal.SIGKILL)
    one.ends_well()
    assert_same(final_state(tmp_path / "run"), whole)
    (resumed,) = resumptions(tmp_path / "run")
    assert resumed["update"] > 0
    assert resumed["processes"] == 2
    assert 0 <= resumed["lost_updates"] <= 40
    assert Run.open(tmp_path / "run").results["evaluations"]


def test_a_hung_process_is_given_up(machines, whole, tmp_path):
    one = machines("--standalone", "--nproc-per-node=2", "--max-restarts=1",
                   recipe=whole_recipe(*SETTINGS, "engine.patience_seconds=8"))  # fmt: skip
    until(lambda: under_way(tmp_path / "run"), "updates")
    os.kill(one.workers()[1], signal.SIGSTOP)
    one.ends_well()
    assert_same(final_state(tmp_path / "run"), whole)
    assert len(resumptions(tmp_path / "run")) == 1


def meeting():
    """torchrun's arguments on the machine that holds the meeting place, and on another one."""
    endpoint = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    common = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
    return [
        [*common, endpoint, "--rdzv-id=faults", f"--rdzv-conf={QUICK},is_host={holds}"]
        for holds in (1, 0)
    ]


def test_a_run_goes_on_without_a_machine_that_is_lost(machines, whole, tmp_path):
    recipe = whole_recipe(*SETTINGS, "engine.patience_seconds=20")
    stays, leaves = (machines(*arguments, recipe=recipe) for arguments in meeting())
    until(lambda: under_way(tmp_path / "run"), "updates")
    leaves.lose()
    stays.ends_well()
    numbers = [r["processes"] for r in resumptions(tmp_path / "run")]
    assert numbers[-1] == 1
    assert final_state(tmp_path / "run")["parts"] == 2
    assert_close(final_state(tmp_path / "run"), whole)


def test_a_machine_that_comes_later_shares_the_work(machines, whole, tmp_path):
    here, there = meeting()
    recipe = whole_recipe(*SETTINGS)
    first = machines(*here, recipe=recipe)
    until(lambda: under_way(tmp_path / "run"), "updates")
    second = machines(*there, recipe=recipe)
    first.ends_well()
    second.ends_well()
    assert [r["processes"] for r in resumptions(tmp_path / "run")] == [2]
    assert_close(final_state(tmp_path / "run"), whole)
