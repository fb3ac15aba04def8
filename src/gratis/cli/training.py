"""The commands that train: train, compare, lr-range, reproduce, recipes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gratis import recipe as recipes
from gratis import terminal
from gratis.cli.paths import refuse_taken, shifts_of, write_page
from gratis.launched import launch
from gratis.names import parse_method
from gratis.run import REPORT, Run, WatchedRun

if TYPE_CHECKING:
    from gratis.recipe import Plain


def train(options: argparse.Namespace) -> int:
    """Train as a recipe says, evaluate, write the report."""
    values = recipes.override(recipes.read(options.recipe), options.set)
    out = Path(options.out or Path("runs") / str(values["name"]))
    if launch() is None:  # torchrun may have restarted us: then the first process decides
        refuse_taken(out, options.resume)
    run = _train(values, out, options)
    if isinstance(run, WatchedRun):
        return 0  # of torchrun's processes the first one shows and reports
    terminal.table([run])
    write_page([run], run.path / REPORT)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Train several methods at one budget on one data set and compare them."""
    methods = {name: parse_method(name) for name in options.method}
    base = recipes.override(recipes.read(options.data), options.set)
    base = recipes.override(base, [f"budget.passes={options.budget}"])
    planned: list[tuple[Plain, Path]] = []
    for name in methods:
        values = {**base, "method": recipes.with_method(base.get("method") or {}, name)}
        planned.append((values, options.out / name))
    for values, _ in planned:  # what is wrong with the last is not found after the first's hours
        recipes.from_plain(values).check_method()
    if launch() is None:
        refuse_taken(options.out, options.resume)
    runs = []
    for values, out in planned:
        resume = options.resume and out.exists()
        runs.append(_train(values, out, options, resume=resume, label=out.name))
    if isinstance(runs[-1], WatchedRun):
        return 0
    terminal.table(runs)
    write_page(runs, options.out / REPORT)
    return 0


def lr_range(options: argparse.Namespace) -> int:
    """Find the largest learning rate at which a recipe's training does not diverge."""
    values = recipes.override(recipes.read(options.recipe), options.set)
    out = Path(options.out or Path("runs") / "lr-range" / str(values["name"]))
    refuse_taken(out, False, "give another --out or move it away", run=False)
    recipe = recipes.from_plain(values)
    from gratis import lr_range as test

    with terminal.bar(recipe.name) as progress:
        found = test.lr_range(
            recipe,
            low=options.low,
            high=options.high,
            updates=options.updates,
            progress=progress,
        )
    test.write(found, recipe, out)
    print(f"largest rate before divergence: {found.answer}")
    if found.lowest is not None:
        print(f"lowest smoothed loss: {found.lowest[1]:.4g} at rate {found.lowest[0]:.3g}")
    print(f"report: {out / test.PAGE}")
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """Make the papers' tables and figures again: paper beside measured."""
    from gratis.reproduce import papers

    if not options.table:
        for name in papers.files():
            table = papers.read(name)
            print(f"{name:16} {table.title} ({len(table.rows)} rows; {table.paper})")
        print("\ngratis reproduce TABLE --scale smoke|cpu|paper    or all of them: all")
        return 0
    places = shifts_of(options)
    names = list(papers.files()) if options.table == ["all"] else options.table
    tables = [papers.read(name) for name in names]
    chosen = [table.choose(tuple(options.rows)) for table in tables]
    from gratis.reproduce.console import show
    from gratis.reproduce.rows import reproduce

    all_done = True
    for table, rows in zip(tables, chosen, strict=True):
        out = options.out / table.name / options.scale
        given = tuple(options.set)
        record, done = reproduce(
            table, options.scale, out, rows=rows, given=given, places=places, bar=terminal.bar
        )
        if not record:
            continue  # of torchrun's processes the first one shows, and says whether all went well
        all_done = all_done and done
        show(record)
        print(f"written: {out}/table.html, table.md, table.json\n")
    return 0 if all_done else 1


def list_recipes(options: argparse.Namespace) -> int:
    """List the shipped recipes with budget and expected numbers."""
    for name in recipes.shipped():
        values = recipes.read(name)
        about = values.get("about") or {}
        budget = "; ".join(f"{v} {k.replace('_', ' ')}" for k, v in values["budget"].items())
        print(f"{name}: {about.get('title', '')}")
        print(f"    budget: {budget} per training image; data: {values['data']['name']}")
        print(f"    expected: {about.get('expected', 'not measured')}")
    print("\ngratis train NAME --set key=value ...    or copy one: see the files' folder,")
    print(next(iter(recipes.shipped().values())).parent)
    return 0


def _train(
    values: "Plain",
    out: Path,
    options: argparse.Namespace,
    *,
    resume: bool | None = None,
    label: str = "",
) -> Run:
    recipe = recipes.from_plain(values)
    recipe.check_method()  # a wrong method is answered before the rest is imported
    from gratis import train as training

    with terminal.bar(label or recipe.name) as progress:
        return training.run(
            recipe,
            out,
            resume=options.resume if resume is None else resume,
            progress=progress,
        )
