"""The command line: parse, call, print. Heavy imports wait until the arguments are understood."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gratis import recipe as recipes
from gratis import terminal
from gratis.arguments import UNUSABLE, parser
from gratis.names import parse_attack, parse_method
from gratis.run import REPORT, Run, WatchedRun

if TYPE_CHECKING:
    from gratis.recipe import Plain

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failed run, 2 for unusable
    input, 130 for Ctrl-C.
    """
    options = parser(COMMANDS).parse_args(arguments)
    # threads that wait should spin shortly, then sleep: on shared cores long spinning makes the
    # steps of small nets several times slower (benchmarks/thread_waiting.py)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # python -m finds a user's module:function in the working directory; so shall the script
    if os.getcwd() not in sys.path:
        sys.path.insert(1, os.getcwd())
    try:
        return int(options.call(options))
    except KeyboardInterrupt:
        how = "nothing was changed"
        if options.call in (train, compare):
            how = "go on with the same command and --resume"
        if options.call in (reproduce, verify):
            how = "go on with the same command"
        print(f"gratis: interrupted; {how}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"gratis: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE if isinstance(error, ValueError | OSError) else 1


# --- commands


def train(options: argparse.Namespace) -> int:
    """Train as a recipe says, evaluate, write the report."""
    values = recipes.override(recipes.read(options.recipe), options.set)
    out = Path(options.out or Path("runs") / str(values["name"]))
    _refuse_taken(out, options.resume)
    run = _train(values, out, options)
    if isinstance(run, WatchedRun):
        return 0  # of torchrun's processes the first one shows and reports
    terminal.table([run])
    _report([run], run.path / REPORT)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Train several methods at one budget on one data set and compare them."""
    methods = {name: parse_method(name) for name in options.method}
    base = recipes.override(recipes.read(options.data), options.set)
    base = recipes.override(base, [f"budget.passes={options.budget}"])
    planned: list[tuple[Plain, Path]] = []
    for name in methods:
        values = {**base, "method": recipes.with_method(base["method"], name)}
        planned.append((values, options.out / name))
    _refuse_taken(options.out, options.resume)
    runs = []
    for values, out in planned:
        resume = options.resume and out.exists()
        runs.append(_train(values, out, options, resume=resume, label=out.name))
    terminal.table(runs)
    _report(runs, options.out / REPORT)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Attack a trained run and add the outcome to its results."""
    for attack in options.attack or []:
        parse_attack(attack)
    run, checkpoint = _run_and_checkpoint(options.run)
    from dataclasses import replace

    from gratis.assess import evaluate_run, question
    from gratis.recipe import from_plain

    asked = question(from_plain(run.recipe))
    balls = asked.balls
    if options.eps is not None:
        balls = (replace(balls[0], eps=options.eps),)
    asked = replace(
        asked,
        attacks=tuple(options.attack or asked.attacks),
        balls=balls,
        limit=options.limit if options.limit is not None else asked.limit,
        checkpoint=checkpoint or asked.checkpoint,
    )
    with run.locked(), terminal.bar(run.path.name) as progress:
        evaluate_run(run, asked, progress)
    terminal.table([run])
    _report([run], run.path / REPORT)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Prove that no attack can succeed, image by image, or find one that does (Linf)."""
    run, checkpoint = _run_and_checkpoint(options.run)
    from gratis.balls import Linf
    from gratis.recipe import from_plain
    from gratis.verify import Settings, verify_run
    from gratis.verify.console import show

    recipe = from_plain(run.recipe)
    balls = recipe.evaluation_balls()
    if options.eps is None and not isinstance(balls[0], Linf):
        raise ValueError(
            "this run was evaluated in another norm; exact verification is in Linf: --eps"
        )
    ball = Linf(balls[0].eps if options.eps is None else options.eps)
    with run.locked(), terminal.bar(run.path.name) as progress:
        summary = verify_run(
            run,
            ball,
            Settings(time_limit=options.time_limit, seed=recipe.seed),
            limit=options.limit,
            checkpoint=checkpoint or recipe.evaluation.checkpoint,
            progress=progress,
        )
    show(summary)
    print(f"written: {run.path / 'verify'}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Write one page about one or several runs."""
    runs = []
    for path in options.run:
        inside = sorted(p.parent for p in path.glob("*/recipe.yaml"))
        alone = (path / "recipe.yaml").is_file() or not inside
        runs += [Run.open(path)] if alone else [Run.open(p) for p in inside]
    single = runs[0].path if len(runs) == 1 else options.run[0]
    _report(runs, options.out or single / REPORT)
    return 0


def lr_range(options: argparse.Namespace) -> int:
    """Find the largest learning rate at which a recipe's training does not diverge."""
    values = recipes.override(recipes.read(options.recipe), options.set)
    out = Path(options.out or Path("runs") / "lr-range" / str(values["name"]))
    _refuse_taken(out, False, "give another --out or move it away")
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
            table, options.scale, out, rows=rows, given=given, bar=terminal.bar
        )
        show(record)
        print(f"written: {out}/table.html, table.md, table.json\n")
        all_done = all_done and done
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


COMMANDS = {
    "train": train,
    "compare": compare,
    "evaluate": evaluate,
    "verify": verify,
    "report": report,
    "lr-range": lr_range,
    "reproduce": reproduce,
    "recipes": list_recipes,
}


# --- what the commands share


CONTINUE = "give another --out, move it away, or continue it with --resume"


def _refuse_taken(out: Path, resume: bool, remedy: str = CONTINUE) -> None:
    """An early word on what will not be written over, before torch is imported."""
    if not resume and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; nothing is overwritten: {remedy}")


def _train(
    values: "Plain",
    out: Path,
    options: argparse.Namespace,
    *,
    resume: bool | None = None,
    label: str = "",
) -> Run:
    recipe = recipes.from_plain(values)
    recipe.evaluation_balls()  # a wrong method is answered before the rest is imported
    from gratis import train as training

    with terminal.bar(label or recipe.name) as progress:
        return training.run(
            recipe,
            out,
            resume=options.resume if resume is None else resume,
            progress=progress,
        )


def _run_and_checkpoint(path: Path) -> tuple[Run, str | None]:
    """A run directory, or one of its checkpoints: RUN/checkpoints/best.pt."""
    if path.suffix == ".pt":
        if not path.is_file():
            raise ValueError(f"no checkpoint {path}")
        if path.parent.name != "checkpoints":
            raise ValueError(
                f"{path} lies outside a run directory (RUN/checkpoints/NAME.pt); the recipe "
                "beside it says which network and data it belongs to"
            )
        return Run.open(path.parent.parent), path.stem
    return Run.open(path), None


def _report(runs: list[Run], out: Path) -> None:
    from gratis.report import write_report

    write_report(runs, out)
    print(f"report: {out}")
