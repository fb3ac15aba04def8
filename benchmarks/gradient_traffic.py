"""What gradients cost on the way: an update of two hosts, by how many bits a number travels in.

    python benchmarks/gradient_traffic.py --out traffic.json     # as root; PreActResNet18
    python benchmarks/gradient_traffic.py --width 8 --rates 100mbit --rounds 3     # a quick look
    python benchmarks/gradient_traffic.py --same     # two hosts end bitwise where one does

The hosts are network namespaces of this machine (hosts.py): links of the given rates, but one
processor, of which each host gets a thread. Every way of exchanging takes its turn, `--rounds`
times, and beside them an update of which nothing travels; medians, then the mean of the hosts.
Bytes are those that a host's interface sent, with headers and acknowledgements, beside those
that follow from the network's size. --out writes rows for scaling_law.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hosts import LINK, Hosts, bits_per_second, hosts
from measuring import setting

from gratis import Learner, Linf, Natural, PGDTraining, fgsm_rs
from gratis.checkpoint import load_state
from gratis.distributed import Processes, joined
from gratis.nn import build_model
from gratis.passes import Batch, Method
from gratis.scaling import Gradient

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "q8": 8, "q4": 4, "q8-two-sided": 8, "q4-two-sided": 4}
METHODS: dict[str, Callable[[], Method]] = {
    "natural": Natural,
    "fgsm-rs": lambda: fgsm_rs(Linf(8 / 255)),
    "pgd-7": lambda: PGDTraining(Linf(8 / 255), steps=7),
}
ALONE = "alone"
UNLIMITED = "unlimited"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rates", nargs="+", default=["100mbit", "1gbit", UNLIMITED])
    parser.add_argument("--gradients", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--method", choices=METHODS, default="fgsm-rs")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="images of each host")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--same", action="store_true", help="compare runs instead of timing them")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
    elif options.same:
        same()
    else:
        measure(options)


# --- one of the hosts


def learner(options: argparse.Namespace, gradients: str) -> Learner:
    torch.manual_seed(0)
    shape = {"classes": 10, "channels": 3, "image_size": 32}
    model = build_model("preact-resnet18", **shape, width=options.width)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    return Learner(model, optimizer, channels_last=True, seed=0, gradients=gradients)


def work(options: argparse.Namespace) -> None:
    """Write to the folder `options.worker` what this host found: {name: [seconds, bytes sent]}."""
    torch.set_num_threads(1)
    batch = Batch(torch.rand(options.batch, 3, 32, 32), torch.randint(0, 10, (options.batch,)))
    method = METHODS[options.method]()
    learners = {ALONE: learner(options, "fp32")}  # made before there is anybody to exchange with
    with joined(torch.device("cpu")) as processes:
        learners |= {name: learner(options, name) for name in options.gradients}
        jobs = {name: lambda one=one: one.fit(method, batch) for name, one in learners.items()}
        found = in_turn(jobs, options.rounds, processes)
        (options.worker / f"{processes.rank}.json").write_text(json.dumps(found))


def in_turn(
    jobs: dict[str, Callable[[], object]], rounds: int, processes: Processes
) -> dict[str, tuple[float, float]]:
    """Median (seconds, bytes sent) of each job, all of them in turn; all hosts begin each at once.

    A first round, in which everything is allocated, does not count.
    """
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            processes.total(torch.zeros(1))
            before, clock = bytes_sent(), time.perf_counter()
            job()
            taken[name].append((time.perf_counter() - clock, bytes_sent() - before))
    return {
        name: tuple(statistics.median(each) for each in zip(*pairs[1:], strict=True))  # type: ignore[misc]
        for name, pairs in taken.items()
    }


def bytes_sent() -> int:
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text())


# --- all of them


def measure(options: argparse.Namespace) -> None:
    print(setting())
    with torch.device("meta"):
        sizes = [p.numel() for p in learner(options, "fp32").model.parameters()]
    print(
        f"{options.hosts} hosts, a thread each; PreActResNet18, width {options.width}, "
        f"{sum(sizes) / 1e6:.2f} M parameters in {len(sizes)} tensors; {options.method}, "
        f"{options.batch} images a host; {options.rounds} rounds\n"
    )
    print(
        f"| link | gradients | s an update | of it compute | of {options.gradients[0]}'s time "
        "| MB sent | computed |"
    )
    print("|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    with hosts(options.hosts) as network:
        for rate in options.rates:
            network.limit(None if rate == UNLIMITED else rate)
            found = on_hosts(network, sys.argv[1:])
            compute = found.pop(ALONE)[0]
            for name, (seconds, sent) in found.items():
                gradient = as_sent(name, sizes)
                rows.append(
                    {
                        "hosts": options.hosts,
                        "batch": options.batch,
                        "gradients": name,
                        "bits": BITS[name],
                        "bytes": sent,
                        "computed_bytes": gradient.sent(options.hosts),
                        "rounds": gradient.rounds(options.hosts),
                        "gradient_bytes": 4 * sum(sizes),
                        "megabit_per_s": None if rate == UNLIMITED else bits_per_second(rate) / 1e6,
                        "seconds_per_update": seconds,
                        "seconds_of_compute": compute,
                        "backward": last_backward(options),
                    }
                )
                print(
                    f"| {rate} | {name} | {seconds:.3f} | {compute:.3f} "
                    f"| {seconds / found[options.gradients[0]][0]:.2f} | {sent / 1e6:.3f} "
                    f"| {gradient.sent(options.hosts) / 1e6:.3f} |",
                    flush=True,
                )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"\n{options.out}")


def as_sent(name: str, sizes: Sequence[int]) -> Gradient:
    """The gradient as `gratis.scaling` knows it."""
    if not name.startswith("q"):
        return Gradient(sum(sizes), BITS[name])
    sides = "two-sided" if name.endswith("two-sided") else "one-sided"
    return Gradient(sum(sizes), BITS[name], sides, len(sizes))


def last_backward(options: argparse.Namespace) -> float:
    """The share of an update's compute in which gradients can travel: its last pass's backward."""
    return 2 * options.batch / METHODS[options.method]().update_thirds(options.batch)[0]


def on_hosts(network: Hosts, arguments: Sequence[str]) -> dict[str, tuple[float, float]]:
    """What `work` finds on all hosts of the network, the mean of them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [__file__, *arguments, "--worker", folder]
        together(network, [command] * network.count)
        found = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    return {
        name: tuple(
            statistics.mean(column) for column in zip(*(f[name] for f in found), strict=True)
        )  # type: ignore[misc]
        for name in found[0]
    }


def together(network: Hosts, commands: Sequence[Sequence[str]], each: int = 1) -> None:
    """torchrun on as many hosts as there are commands; SystemExit with what they say on failure."""
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    out |= {"env": {"OMP_NUM_THREADS": "1"}, "hosts": len(commands), "each": each}
    started = [network.torchrun(host, command, **out) for host, command in enumerate(commands)]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("\n".join(said))


# --- does it matter where the processes are?

SMALL = {
    "data": {"name": "digits", "batch_size": 100, "limit": 464},
    "model": {"name": "small-conv", "options": {"width": 4}},
    "method": {"name": "free", "ball": {"norm": "linf", "eps": 0.2}},
    "optimizer": {"learning_rate": 0.1},
    "budget": {"passes": 6},
    "evaluation": {"attacks": ["pgd-3"], "limit": 24},
    "engine": {"device": "cpu"},
}


def same() -> None:
    """Train twice with two processes, on one host and on two; SystemExit unless all is equal."""
    print(setting())
    with tempfile.TemporaryDirectory() as name, hosts(2, "1gbit") as network:
        folder = Path(name)
        for gradients in ("fp32", "q8", "q4-two-sided"):
            recipe = SMALL | {"engine": {"device": "cpu", "gradients": gradients}}
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            states = []
            for count in (1, 2):
                out = folder / f"{gradients}-{count}"
                train = ["-m", "gratis", "train", str(folder / "recipe.yaml"), "--out", str(out)]
                together(network, [train] * count, each=2 // count)
                states.append(load_state(out / "checkpoints" / "last.pt"))
            one, two = states
            kept = ("updates", "model", "optimizer", "method", "spent", "best")
            if unlike := [key for key in kept if differs(one[key], two[key])]:
                raise SystemExit(f"{gradients}: one host and two end with unlike {unlike}")
            print(f"{gradients}: bitwise equal after {one['updates']} updates")


def differs(one: Any, other: Any) -> bool:
    """Whether two nested collections of tensors and plain values are unlike anywhere."""
    if isinstance(one, torch.Tensor):
        return not torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(differs(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) != len(other) or any(map(differs, one, other))
    return bool(one != other)


if __name__ == "__main__":
    main()
