"""Several hosts on one Linux machine: network namespaces joined by a bridge, for tests and timings.

    with hosts(2, rate="100mbit") as network:
        network.run(0, ["ping", "-c1", network.address(1)]).wait()

Each host has an interface `net0` of its own with the address 10.77.0.1, 10.77.0.2, ..., and a
loopback; it shares files, memory and processor with all others. Needs root and iproute2. Names
hold this process's id, so that several may do so at once.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

LINK = "net0"
"""What a host calls its interface."""

UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


class NotPermittedError(RuntimeError):
    """This machine lets nobody, or not this user, make network namespaces."""


class Hosts:
    """`count` hosts behind one switch; made by `hosts`, which also takes them down."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._switch = f"gratis-{os.getpid()}-switch"
        self._names = [f"gratis-{os.getpid()}-host{host}" for host in range(count)]
        self._limited = False

    # --- what is done with them

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def run(
        self, host: int, command: Sequence[str], env: Mapping[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen[Any]:
        """`command` started on a host, in a process group of its own; `popen` is Popen's.

        env: beside this process's variables and those that tell gloo and NCCL which interface
        to take.  The returned process is the command itself: end it with its signals.
        """
        interface = {"GLOO_SOCKET_IFNAME": LINK, "NCCL_SOCKET_IFNAME": LINK}
        return subprocess.Popen(
            ["ip", "netns", "exec", self._names[host], *command],
            env={**os.environ, **interface, **(env or {})},
            start_new_session=True,
            **popen,
        )

    def torchrun(
        self,
        host: int,
        command: Sequence[str],
        *,
        hosts: int | None = None,
        each: int = 1,
        job: str = "gratis",
        **run: Any,
    ) -> subprocess.Popen[Any]:
        """torchrun on `host`, one of the first `hosts` (all), with `each` processes; see `run`.

        command: a script and its arguments, or ["-m", module, ...].  job: its --rdzv-id, the same
        on all hosts. They meet at host 0.
        """
        meeting = [
            f"--nnodes={hosts or self.count}",
            f"--nproc-per-node={each}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.address(0)}:29400",
            f"--rdzv-id={job}",
            # all hosts bear this machine's name, by which torchrun would know where it is
            f"--rdzv-conf=is_host={int(host == 0)}",
            f"--local-addr={self.address(host)}",
        ]
        launcher = [sys.executable, "-m", "torch.distributed.run"]
        return self.run(host, [*launcher, *meeting, *command], **run)

    def limit(self, rate: str | None) -> None:
        """Every link carries at most `rate` ("100mbit", "1gbit") either way; None for no limit."""
        for name, device in self._ends():
            if rate is not None:
                # room for a packet as large as the kernel hands on, and for what it hands on in
                # the 4 ms between two looks at the clock; beyond 200 ms of waiting it drops
                burst = max(128 * 1024, int(bits_per_second(rate) / 8 * 0.004))
                bucket = ["rate", rate, "burst", f"{burst}b", "latency", "200ms"]
                call("tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf", *bucket)
            elif self._limited:
                call("tc", "-n", name, "qdisc", "del", "dev", device, "root")
        self._limited = rate is not None

    def cut(self, host: int) -> None:
        """The host is lost: nothing reaches it or comes from it, and nobody is told."""
        call("ip", "-n", self._switch, "link", "set", f"port{host}", "down")

    def heal(self, host: int) -> None:
        """Undo `cut`."""
        call("ip", "-n", self._switch, "link", "set", f"port{host}", "up")

    def moved(self, host: int) -> tuple[int, int]:
        """(bytes sent, bytes received) by the host so far, headers included."""
        shown = call("ip", "-n", self._names[host], "-s", "-j", "link", "show", "dev", LINK)
        counters = json.loads(shown)[0]["stats64"]
        return counters["tx"]["bytes"], counters["rx"]["bytes"]

    # --- how they come and go

    def build(self) -> None:
        call("ip", "netns", "add", self._switch)
        call("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        call("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for host, name in enumerate(self._names):
            port = f"port{host}"
            call("ip", "netns", "add", name)
            pair = ["type", "veth", "peer", "name", LINK, "netns", name]
            call("ip", "-n", self._switch, "link", "add", port, *pair)
            call("ip", "-n", self._switch, "link", "set", port, "master", "bridge", "up")
            call("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", LINK)
            call("ip", "-n", name, "link", "set", LINK, "up")
            call("ip", "-n", name, "link", "set", "lo", "up")

    def take_down(self) -> None:
        """End what still runs on the hosts, then the hosts; never fails for what is not there."""
        for name in (*self._names, self._switch):
            while found := quiet("ip", "netns", "pids", name).split():
                for process in map(int, found):
                    try:
                        os.kill(process, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                time.sleep(0.01)
            quiet("ip", "netns", "delete", name)

    def _ends(self) -> Iterator[tuple[str, str]]:
        """Both ends of every link: (namespace, device)."""
        for host, name in enumerate(self._names):
            yield name, LINK
            yield self._switch, f"port{host}"


@contextmanager
def hosts(count: int, rate: str | None = None) -> Iterator[Hosts]:
    """`count` hosts for as long as the context lasts, whose links carry `rate` (no limit if None).

    On leaving, by an error or SIGTERM too, all that still runs on them is killed. Raises
    NotPermittedError where namespaces cannot be made, ValueError for a rate that is none.
    """
    if rate is not None:
        bits_per_second(rate)
    if not sys.platform.startswith("linux") or not (shutil.which("ip") and shutil.which("tc")):
        raise NotPermittedError("hosts are Linux network namespaces, made by ip and tc (iproute2)")
    network = Hosts(count)
    # by default SIGTERM ends a process without its `finally`; only a main thread may say otherwise
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if main else None
    try:
        try:
            network.build()
            network.limit(rate)
        except subprocess.CalledProcessError as error:
            raise NotPermittedError(
                f"{' '.join(error.cmd)} failed: {error.stderr.strip()}; hosts need root and a "
                "kernel that allows network namespaces, veth, bridges and tbf"
            ) from error
        yield network
    finally:
        network.take_down()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def bits_per_second(rate: str) -> float:
    """Of a rate as tc writes it; ValueError for anything but a number with its unit."""
    for unit, size in UNITS.items():
        number = rate.removesuffix(unit)
        if number != rate and number.replace(".", "", 1).isdecimal() and float(number) > 0:
            return float(number) * size
    raise ValueError(f"rate={rate!r}: give a number and {', '.join(UNITS)}, such as 100mbit")


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def quiet(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout
