"""Do detectors learn? 16 images of COCO by heart, with and without Fast AdvProp, same price.

    python benchmarks/overfit_detection.py --data DIR --out runs/overfit-detection

DIR holds annotations/instances_train2017.json and train2017/, such as the first 128 images of
COCO. Both rows have one network, optimizer, schedule, batch size and budget of passes per image;
the images learned from are the ones judged on, so a figure says that the loss, its gradients and
the boxes' geometry are right, and nothing more. Done when both exceed 0.3 mAP at IoU 0.50.
"""

import argparse
from pathlib import Path

import torch
from measuring import setting

from gratis import recipe, train
from gratis.run import Run

IMAGES = 16
COMMON = [
    "data.test_split=train",
    f"data.limit={IMAGES}",
    "data.image_size=128",
    "data.stored=null",
    "data.batch_size=8",
    "data.augment=[]",
    "model.name=retinanet-r18",
    "model.options={width: 64, smallest_anchor: 8, head_norm: group}",
    "optimizer.learning_rate=1e-3",
    "schedule={shape: cosine, warmup: 0.05}",
    "engine.device=cpu",
    "engine.precision=fp32",
    "engine.channels_last=false",
    f"evaluation.limit={IMAGES}",
    "evaluation.batch_size=8",
]
ROWS = {"vanilla": "retinanet-coco", "Fast AdvProp": "fast-advprop-coco"}
WANTED = 0.3


def trained(name: str, settings: list[str], out: Path) -> Run:
    directory = out / name
    made = recipe.load(name, settings)
    return train.run(made, directory, resume=directory.exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/overfit-detection"))
    parser.add_argument("--passes", type=float, default=50, help="budget per image (default: 50)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = [*COMMON, f"data.root={options.data}", f"budget.passes={options.passes}"]
    print(setting())
    print(f"{IMAGES} images at 128 px, judged on themselves")
    print(f"{'':14}{'passes':>8}{'updates':>9}{'seconds':>9}{'mAP@0.50':>10}{'mAP':>8}")
    for title, name in ROWS.items():
        results = trained(name, settings, options.out).results
        assert results is not None
        budget, found = results["budget"], results["detection"]
        verdict = "" if found["map_50"] > WANTED else f"  below {WANTED}"
        print(
            f"{title:14}{budget['metered_passes']:8.2f}{budget['updates']:9}"
            f"{budget['seconds']:9.0f}{found['map_50']:10.3f}{found['map']:8.3f}{verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
