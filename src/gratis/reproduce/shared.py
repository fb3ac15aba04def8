"""Rows that stand in several tables are trained once: which runs are alike, and taking one over."""

import json
import shutil
from functools import cache
from pathlib import Path

from gratis.distributed import joined
from gratis.held import LAUNCH, LOCK, RECIPE, RunInUseError
from gratis.launched import rank_and_world
from gratis.recipe import Plain, Recipe, from_plain
from gratis.reproduce.outcome import FACTS
from gratis.run import Run
from gratis.setting import pick_device

OWN = (FACTS, LOCK, LAUNCH)
"""What belongs to the directory a run was made in, and not to its copy."""


def same_training(out: Path, recipe: Recipe) -> Recipe | None:
    """The recipe in `out`, if there is one that differs from `recipe` in its name, in what it
    says about itself and in its attacks at most.

    A table that gets a further attack shall not train its rows again.
    """
    if not (out / RECIPE).is_file():
        return None
    own = Run.open(out).recipe
    # of another version it differs: what train.run says of it is clearer
    return from_plain(own) if _training(own) == _training(recipe.plain()) else None


def _training(recipe: Plain) -> Plain:
    """What of a recipe decides over the training, and which images it is judged on."""
    kept = {key: value for key, value in recipe.items() if key not in ("name", "about")}
    judged = kept.get("evaluation") or {}
    others = {key: value for key, value in judged.items() if key not in ("attacks", "eps")}
    return kept | {"evaluation": others}


@cache  # every row asks about all that are finished, whose recipes stay as they are
def _training_of(out: Path) -> Plain:
    return _training(Run.open(out).recipe)


def take_over(out: Path, recipe: Recipe) -> None:
    """Copy to `out`, where nothing is yet, a finished row of a table beside its own that was
    trained as `recipe` says and by as many processes. The copy keeps the recipe it was made by.

    out: TABLES/TABLE/SCALE/ROW.  Of several processes the first one copies.
    """
    device, patience = pick_device(recipe.engine.device), recipe.engine.patience_seconds
    with joined(device, patience) as processes:
        processes.led(lambda: _copied(out, recipe))


def _copied(out: Path, recipe: Recipe) -> None:
    if out.exists():
        return
    scale, tables = out.parent.name, out.parent.parent.parent
    wanted = _training(recipe.plain())
    for facts in sorted(tables.glob(f"*/{scale}/*/{FACTS}")):
        known = json.loads(facts.read_text("utf-8"))
        trained_by = known.get("processes", 1)
        if trained_by != rank_and_world()[1] or _training_of(facts.parent) != wanted:
            continue
        if not Run.open(facts.parent).has_checkpoint:
            continue  # what it was trained to is gone
        # a copy that was interrupted must not be taken for a run
        part = out.with_name(f".{out.name}.copy")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with Run.open(facts.parent).locked():
                shutil.copytree(facts.parent, part, ignore=shutil.ignore_patterns(*OWN))
        except RunInUseError:
            continue  # its numbers are being added to
        part.rename(out)
        return
