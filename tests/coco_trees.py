"""Small data sets in COCO's layout, written to disk."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]  # neither in order nor from 0


def write_split(root, split, images, annotations, categories=CATEGORIES):
    """images: (id, width, height); annotations: dicts of image_id, category_id, bbox and more."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, width, height in images:
        name = f"{number:012}.png"
        draw = np.random.default_rng(number)
        pixels = draw.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        entries.append({"id": number, "file_name": name, "width": width, "height": height})
    known = {
        "images": entries,
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, 1)],
        "categories": categories,
    }
    write_json(root, split, known)
    return known


def write_json(root, split, known):
    path = Path(root) / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known) if not isinstance(known, str) else known)


def small(root, splits=("train", "val")):
    """Twelve images of 80 x 60 or 40 x 64 pixels a split, one without boxes, one with a crowd."""
    for split in splits:
        images = [(n, 80, 60) if n % 2 else (n, 40, 64) for n in range(1, 13)]
        boxes = [
            {"image_id": n, "category_id": 3 if n % 3 else 7, "bbox": [n, 2 * n, 20, 16]}
            for n in range(1, 12)
        ]
        crowd = {"image_id": 2, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1}
        write_split(root, split, images, [*boxes, crowd])
    return root


def turned_boxes(y: Tensor, side: int) -> Tensor:
    """Boxes [M, 5] of a square, left to right, by hand; padding stays."""
    turned = y.clone()
    real = turned[:, 4] != -1
    turned[real] = turned[real][:, [2, 1, 0, 3, 4]]
    turned[real, 0] = side - turned[real, 0]
    turned[real, 2] = side - turned[real, 2]
    return turned
