"""The recipe of a row at a scale: a shipped recipe and settings on top. Never imports torch."""

import os
import re
from pathlib import Path
from typing import Any

from gratis import recipe as recipes
from gratis.names import parse_attack
from gratis.recipe import Plain, override
from gratis.reproduce.columns import Column
from gratis.reproduce.papers import Row, Scale, Table

COMMON = ("data.holdout=0", "guard.mode=off")
"""Papers train on all training images and are not helped."""

SMOKE = (
    "data={name: digits, batch_size: 40, holdout: 0, limit: 80}",
    "phases=[]",
    "model.name=small-conv",
    "model.options={width: 4}",
    "model.mean=null",
    "model.std=null",
    "engine.device=cpu",
    "engine.precision=fp32",
    "engine.channels_last=false",
    "budget.data_passes=2",
    "evaluation.limit=20",
    "evaluation.batch_size=20",
)
"""Data, net and budget cut to a second a row. The method stays the row's own to the last option."""

SMOKE_MOST = 2
"""No attack makes more steps or restarts at smoke."""

NO_ATTACK = "pgd-2"
"""Every evaluation needs some attack; that of a table without one is not shown."""

JPEG = "cifar10-jpeg"
"""A folder under the data's root that stands in for CIFAR-10 where that is absent."""

FEW_BOXES = "coco128"
"""COCO's first 128 training images, where COCO is absent; they have no other split."""


def attack(column: Column, scale: Scale) -> str | None:
    """The attack that is run for a column; at smoke with few steps."""
    if scale == "cpu" and column.cpu:
        return parse_attack(column.cpu).text
    if column.attack is None or scale != "smoke":
        return column.attack
    head, colon, options = column.attack.partition(":")
    return re.sub(r"\d+", lambda n: str(min(int(n[0]), SMOKE_MOST)), head) + colon + options


def values(table: Table, row: Row, scale: Scale, given: tuple[str, ...] = ()) -> Plain:
    """The recipe, in YAML types, of `row`; `given` settings are the user's and come last."""
    base = recipes.read(row.recipe or table.recipe)
    base["name"] = f"{table.name}-{row.name}"
    base["about"] = {"title": row.title or row.name, "paper": table.paper}
    found = override(base, [*COMMON, *table.set, *row.set])
    found = override(found, _evaluation(table, scale))
    if scale == "cpu":
        _shorten(found, table.cpu.epochs)
        found = override(found, [*table.cpu.set, *row.cpu])
    if scale == "smoke":
        found = override(found, [*SMOKE, *row.smoke])
    return _at_hand(override(found, given))


def _evaluation(table: Table, scale: Scale) -> list[str]:
    attacks = [name for column in table.columns if (name := attack(column, scale))]
    radii = [column.eps for column in table.columns if column.attack and column.eps is not None]
    settings = [f"evaluation.attacks={list(dict.fromkeys(attacks)) or [NO_ATTACK]}"]
    if radii:
        settings.append(f"evaluation.eps={list(dict.fromkeys(radii))}")
    return settings


def _shorten(found: Plain, factor: float) -> None:
    budget = {key: value for key, value in found["budget"].items() if value is not None}
    found["budget"] = {key: float(value) * factor for key, value in budget.items()}


def _at_hand(found: Plain) -> Plain:
    """CIFAR-10 recompressed as JPEG in place of CIFAR-10, and COCO's first images in place of
    COCO, where only that is there.
    """
    data: Any = found.get("data")
    if not isinstance(data, dict) or "name" not in data:
        return found  # which is explained where recipes are read
    root = data.get("root") or os.environ.get("GRATIS_DATA")
    if not root:
        return found
    folder = Path(root).expanduser()
    if data["name"] == "coco" and not (folder / "annotations").is_dir():
        few = folder / FEW_BOXES
        if few.is_dir():
            return {**found, "data": {**data, "root": str(few), "test_split": "train"}}
    if data["name"] != "cifar10":
        return found
    if (folder / JPEG).is_dir() and not (folder / "cifar-10-batches-py").is_dir():
        return {**found, "data": {**data, "name": "folder", "root": str(folder / JPEG)}}
    return found
