"""4,000 labels of CIFAR-10: alone, with 46,000 images without labels, and from another data set.

    GRATIS_DATA=DIR python benchmarks/unlabelled_and_transfer.py --threads 1

DIR holds the image folders cifar10-jpeg (CIFAR-10, recompressed) and imagenette2-160. All rows
but `teacher` and `imagenette`, which others begin with, spend the same budget of passes; what
those two cost is their own line.
"""

import os

from rows import main

DATA = os.environ.get("GRATIS_DATA", ".")
COMMON = [
    "data.name=folder",
    f"data.root={DATA}/cifar10-jpeg",
    "model.options={width: 16, activation: relu, pool: max}",
    "budget.passes=150",
    "check.every=10",
    "evaluation.attacks=[pgd-20]",
    "evaluation.limit=2000",
    "evaluation.batch_size=500",
]
FEW = ["data.labels=4000"]
ALONE = [*FEW, "data.unlabelled.share=0"]
TRADES = ["method=trades-4"]
PSEUDO = ["data.unlabelled.pseudo=OUT/teacher"]
START = ["model.start=OUT/imagenette", "model.new_head=true"]
ROWS = {
    "teacher": [*ALONE, "method=natural", "budget.passes=40"],
    "imagenette": [
        f"data.root={DATA}/imagenette2-160",
        "data.image_size=32",
        "budget.passes=40",
    ],
    "alone-n-fgsm": ALONE,
    "alone-trades": [*ALONE, *TRADES],
    "stability-trades": [*FEW, *TRADES],
    "pseudo-n-fgsm": [*FEW, *PSEUDO],
    "pseudo-trades": [*FEW, *TRADES, *PSEUDO],
    "transfer-n-fgsm": [*ALONE, *START],
    "transfer-head-n-fgsm": [*ALONE, *START, "model.freeze=all-but-head"],
}

if __name__ == "__main__":
    main("unlabelled-and-transfer", "quick-cifar10", COMMON, ROWS)
