"""The seven rows of Wong 2020's table 1 at equal epochs, on the CIFAR-10 images at hand.

    python benchmarks/fast_table1.py --set data.root=DIR/cifar10-jpeg

PreActResNet18 at width 16 instead of 64 and 3 epochs instead of 30, so that two cores do it;
rate cyclic up to 0.2. Free counts its replays as epochs, as the paper does.
"""

from rows import main

COMMON = [
    "data.name=folder",
    "model.options.width=16",
    "schedule.peak=0.4",
    "budget.data_passes=3",
    "guard.mode=off",
    "evaluation.limit=300",
]
ROWS = {
    "fgsm-alpha-16": ["method.step_size=16/255"],
    "fgsm-zero": ["method=fgsm"],
    "fgsm-alpha-10": ["method.step_size=10/255"],
    "free-8": ["method=free-8", "budget.data_passes=0.375", "optimizer.learning_rate=0.04"],
    "fgsm-alpha-8": ["method.step_size=8/255"],
    "fgsm-previous": ["method=fgsm", "method.start=previous"],
    "pgd-7": ["method=pgd-7"],
}

if __name__ == "__main__":
    main("fast-table1", "cifar10", COMMON, ROWS)
