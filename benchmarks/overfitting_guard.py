"""Catastrophic overfitting on MNIST at eps 0.3, left alone and caught by the guard.

    python benchmarks/overfitting_guard.py --set data.root=DIR

FGSM from a zero start and from a random one with a step of 2 eps, 10 epochs each, beside the
step of 1.25 eps that works.
"""

from rows import main

ZERO, TWICE = ["method=fgsm"], ["method.step_size=0.6"]
OFF = ["guard.mode=off"]
ROWS = {
    "zero-off": ZERO + OFF,
    "zero-guarded": ZERO,
    "alpha-2eps-off": TWICE + OFF,
    "alpha-2eps-guarded": TWICE,
    "alpha-1.25eps-off": OFF,
    "alpha-1.25eps-guarded": [],
}

if __name__ == "__main__":
    main("overfitting-guard", "mnist", ["evaluation.limit=1000", "evaluation.eps=0.3"], ROWS)
