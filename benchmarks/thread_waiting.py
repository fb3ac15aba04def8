"""How long OpenMP threads should spin while they wait: a small net's step, on quiet cores and
with one of them kept busy by somebody else.

    python benchmarks/thread_waiting.py

Each setting runs in a process of its own, in turn, three rounds; medians, and the ratio to one
thread on quiet cores.
"""

import os
import statistics
import subprocess
import sys

from measuring import setting

STEP = """
import time, torch
from gratis import Learner, Natural
from gratis.nn import build_model
from gratis.passes import Batch
torch.set_num_threads({threads})
model = build_model("small-conv", classes=10, channels=1, image_size=8)
learner = Learner(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
batch = Batch(torch.rand(128, 1, 8, 8), torch.randint(0, 10, (128,)))
for _ in range(10): learner.fit(Natural(), batch)
begun = time.perf_counter()
for _ in range(60): learner.fit(Natural(), batch)
print((time.perf_counter() - begun) / 60 * 1000)
"""
SETTINGS = {
    "one thread": (1, {}),
    "default spinning": (os.cpu_count(), {}),
    "GOMP_SPINCOUNT=100000": (os.cpu_count(), {"GOMP_SPINCOUNT": "100000"}),
    "GOMP_SPINCOUNT=1000 (ours)": (os.cpu_count(), {"GOMP_SPINCOUNT": "1000"}),
    "GOMP_SPINCOUNT=0": (os.cpu_count(), {"GOMP_SPINCOUNT": "0"}),
}


def milliseconds(threads: int, variables: dict[str, str]) -> float:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEP.format(threads=threads)],
        env=inherited | variables, capture_output=True, check=True, text=True,
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    print(setting() + "\n")
    medians = {}
    for busy in (False, True):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            rounds = [{n: milliseconds(*s) for n, s in SETTINGS.items()} for _ in range(3)]
        finally:
            if neighbour:
                neighbour.kill()
        for name in SETTINGS:
            medians[name, busy] = statistics.median(r[name] for r in rounds)
    unit = medians["one thread", False]
    print("| waiting | quiet, ms a step | ratio | one core busy, ms a step | ratio |")
    print("|---|---|---|---|---|")
    for name in SETTINGS:
        quiet, busy = medians[name, False], medians[name, True]
        print(f"| {name} | {quiet:.1f} | {quiet / unit:.2f} | {busy:.1f} | {busy / unit:.2f} |")


if __name__ == "__main__":
    main()
