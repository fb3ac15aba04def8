"""The page about clusters, followed word for word on two hosts of this machine."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gratis.run import Run
from tests.two_processes import needs_gloo

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", PAGE, re.DOTALL)
SECONDS = 240.0

pytestmark = [needs_gloo, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts():
    """Two hosts joined by a network; skips where this machine allows none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module("hosts")
    try:
        with module.hosts(2) as network:
            yield network
    except module.NotPermittedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


def start(hosts, host, command, folder):
    """A shell command of the page on a host, where torchrun is this installation's."""
    said = command.replace("head:", f"{hosts.address(0)}:")
    log = (folder / f"host-{host}.log").open("a")
    # all hosts have this machine's name, by which torchrun would know where it is; and half a
    # minute for late machines at each meeting is long for a test
    said = said.replace(
        "--rdzv-id",
        f"--rdzv-conf=is_host={int(host == 0)},last_call_timeout=3 "
        f"--local-addr={hosts.address(host)} --rdzv-id",
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "OMP_NUM_THREADS": "1"}
    with log:
        return hosts.run(
            host, ["sh", "-c", f"exec env {said}"], env, cwd=folder, stdout=log, stderr=log
        )


def ends_well(process, folder):
    logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
    assert process.wait(SECONDS) == 0, logs


def power_off(torchrun):
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for process in (torchrun.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    torchrun.wait()


def test_the_page_has_the_commands_that_are_followed_here():
    assert [re.search(r"(\S+)\s+docs/slurm|gratis (\w+)", text)[0] for text in COMMANDS] == [
        "gratis train", "gratis evaluate", "gratis train", "sbatch docs/slurm",
    ]  # fmt: skip


def test_two_machines_train_and_evaluate(hosts, folder):
    for command in COMMANDS[:2]:
        both = [start(hosts, host, command, folder) for host in (0, 1)]
        for process in both:
            ends_well(process, folder)
    run = Run.open(folder / "runs" / "first")
    evaluations = {entry["attack"]: entry for entry in run.results["evaluations"]}
    assert evaluations["pgd-10-2"]["images"]["count"] == 200
    assert (run.path / "report.html").exists()


def test_a_machine_is_lost_and_comes_back(hosts, folder):
    command = COMMANDS[2].replace("budget.passes=40", "budget.passes=120")
    command += " engine.patience_seconds=10"
    out = folder / "runs" / "elastic"
    first, second = (start(hosts, host, command, folder) for host in (0, 1))

    def resumed(processes):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if out.exists() and [
                record
                for record in Run(out).log()
                if record["kind"] == "resumed" and record["processes"] == processes
            ]:
                return
            assert first.poll() is None, (folder / "host-0.log").read_text()
            time.sleep(0.05)
        pytest.fail(f"no {processes} processes: {(folder / 'host-0.log').read_text()[-3000:]}")

    while not Run(out).has_checkpoint:
        time.sleep(0.05)
    hosts.cut(1)
    resumed(1)
    # before its network is back: what was lost must not appear again for a moment
    power_off(second)
    hosts.heal(1)
    back = start(hosts, 1, command, folder)
    resumed(2)
    ends_well(first, folder)
    ends_well(back, folder)
    assert Run.open(out).results["evaluations"]


def test_the_slurm_script_starts_every_node(folder):
    """With stand-ins for SLURM's commands: what each node would run."""
    tools = folder / "tools"
    tools.mkdir()
    said = folder / "said"
    for name, text in {
        "scontrol": "echo node-a; echo node-b",
        "srun": f'printf "%s\\n" "$@" > {said}',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    env = {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77",
    }  # fmt: skip
    command = COMMANDS[3].replace("sbatch docs/slurm.sh", f"bash {ROOT / 'docs' / 'slurm.sh'}")
    subprocess.run(command, shell=True, env=env, check=True)
    arguments = said.read_text().split("\n")[:-1]
    assert arguments == [
        "torchrun", "--nnodes=1:2", "--nproc-per-node=8", "--max-restarts=3",
        "--rdzv-backend=c10d", "--rdzv-endpoint=node-a:29400", "--rdzv-id=77",
        "-m", "gratis", "train", "cifar10", "--out", "runs/cifar10-77",
        "--set", "data.root=/data/cifar10", "engine.parts=32",
    ]  # fmt: skip
