"""Small recipes for detectors on shapes and on a tree of files."""

from pathlib import Path
from typing import Any

from gratis.recipe import Recipe, from_plain, override

SHAPES = "gratis.data.detection:shapes"


def tiny(method: str = "natural", *settings: str, passes: float = 1.5) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny-boxes",
        "task": {"name": "detection"},
        "data": {"name": SHAPES, "batch_size": 8, "holdout": 0, "limit": 24, "augment": ["flip"]},
        "model": {
            "name": "tests.tiny_detector:build",
            "mean": [0.5],
            "std": [0.25],
        },
        "method": {"name": method, "ball": {"norm": "linf", "eps": 0.02}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "budget": {"passes": passes},
        "guard": {"mode": "off"},
        "engine": {"device": "cpu"},
        "evaluation": {"limit": 8, "batch_size": 4},
    }
    return from_plain(override(values, settings))


def of_tree(root: Path, *settings: str, method: str = "natural", passes: float = 1.5) -> Recipe:
    data = f"data={{name: coco, root: {root}, batch_size: 4, holdout: 0, augment: [flip]}}"
    where = [data, "data.image_size=64", "data.stored=64", f"data.cache={root.parent / 'cache'}"]
    return tiny(method, *where, "data.workers=1", *settings, passes=passes)
