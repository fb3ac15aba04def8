"""Five methods on Imagenette at one budget: accuracy on clean, attacked and corrupted images.

    python benchmarks/imagenette_at_one_budget.py --set data.root=IMAGENETTE --threads 1

A small PreActResNet18 at 48 pixels, from scratch, streamed from disk. Robust methods train at
2/255, AdvProp and Fast AdvProp (which are meant for accuracy) at 1/255; all are attacked at 2/255.
Corruptions are made from the test images, all 15 at five severities, and are not ImageNet-C.
Then `phases`: FGSM-RS at the same number of data passes in three phases of growing images.
"""

import sys

import torch
from rows import main

from gratis.assess import trained
from gratis.data.shifted import Asked
from gratis.evaluate.interval import clopper_pearson
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.shifts import shift_run
from gratis.training_data import load_split

IMAGES = 250
COMMON = [
    "model.name=preact-resnet18",
    "model.options.width=16",
    "data.stored=72",
    "data.image_size=48",
    "data.test_resize=54",
    "data.batch_size=64",
    "data.workers=1",
    "data.holdout=500",
    "data.drop_last=true",
    "check.every=5",
    "guard.mode=off",
    "budget.passes=15",
    "schedule={shape: cosine, warmup: 0.05}",
    "evaluation.eps=[2/255]",
    "evaluation.attacks=['pgd-50-10:alpha=0.5/255']",
    f"evaluation.limit={IMAGES}",
    f"evaluation.batch_size={IMAGES}",
]
PHASES = (
    "phases=[{share: 6/15, stored: 48, image_size: 32, batch_size: 128}, {share: 6/15, "
    "batch_size: 64}, {share: 3/15, stored: files, image_size: 64, batch_size: 32}]"
)
ROWS = {
    "vanilla": [],
    "fgsm-rs": ["method=fgsm-rs", "method.ball.eps=2/255"],
    "free-4": ["method=free-4", "method.ball.eps=2/255"],
    "advprop-1": ["method=advprop-1", "engine.probe_norm=eval"],
    "fast-advprop": ["method=fast-advprop", "method.adversarial=0.2", "data.batch_size=80"],
    "phases": ["method=fgsm-rs", "method.ball.eps=2/255", "data.test_size=64", PHASES],
}


def corrupted(run: Run) -> str:
    """The mean error on generated corruptions, evaluated unless it was."""
    known = [e for e in (run.results or {}).get("shifts", []) if e["shift"] == "corruptions"]
    if not known:
        print(f"{run.path.name}: corruptions ...", file=sys.stderr, flush=True)
        known = shift_run(run, [Asked("corruptions", limit=IMAGES)])
    return f"{100 * known[0]['mean_error']:.1f}"


@torch.no_grad()
def clean(run: Run) -> str:
    """Accuracy on all test images, with its interval; attacks see the first of them alone."""
    recipe = from_plain(run.recipe)
    images = load_split(recipe.data, "test")
    model = trained(recipe, images, run.load_checkpoint("last")[0]).eval()
    chunks = torch.arange(len(images)).split(IMAGES)
    right = sum(int((model(images.pixels(c)).argmax(1) == images.y[c]).sum()) for c in chunks)
    low, high = clopper_pearson(right, len(images))
    return f"{100 * right / len(images):.1f} ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    main(
        "imagenette",
        "imagenet",
        COMMON,
        ROWS,
        further={"clean % of all": clean, "corruption error %": corrupted},
    )
