"""MNIST as in Wong 2020's table 2: FGSM-RS and PGD-40 at eps 0.3, attacked at 0.3 and 0.1.

    python benchmarks/fast_table2.py --set data.root=DIR

Both train 10 epochs with the rate that the paper gives FGSM; the paper's PGD trains 100.
The first 2,000 test images, the harder end of the set. The guard is off, as for every paper's row.
"""

from rows import main

ROWS = {
    "fgsm-rs": [],
    "pgd-40": ["method=pgd-40", "method.step_size=0.01", "method.only_correct=true"],
}

if __name__ == "__main__":
    main("fast-table2", "mnist", ["guard.mode=off", "evaluation.limit=2000"], ROWS)
