"""The command line: parse, call, print. Heavy imports wait until the arguments are understood."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gratis import recipe as recipes
from gratis import terminal
from gratis.names import number, parse_attack, parse_method
from gratis.run import REPORT, Run

if TYPE_CHECKING:
    from gratis.recipe import Plain

UNUSABLE, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failed run, 2 for unusable
    input, 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
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
        resumable = options.call in (train, compare)
        how = "go on with the same command and --resume" if resumable else "nothing was changed"
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


def list_recipes(options: argparse.Namespace) -> int:
    """List the shipped recipes with budget and expected numbers."""
    for name in recipes.shipped():
        values = recipes.read(name)
        about = values.get("about") or {}
        budget = "; ".join(f"{v} {k.replace('_', ' ')}" for k, v in values["budget"].items())
        print(f"{name:12} {about.get('title', '')}")
        print(f"{'':12} budget: {budget} per training image; data: {values['data']['name']}")
        print(f"{'':12} expected: {about.get('expected', 'not measured')}")
    print("\ngratis train NAME --set key=value ...    or copy one: see the files' folder,")
    print(next(iter(recipes.shipped().values())).parent)
    return 0


# --- what the commands share


def _refuse_taken(out: Path, resume: bool) -> None:
    """An early word on what Run.writing would refuse, before torch is imported."""
    if not resume and out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} exists and is not empty; nothing is overwritten: "
            "give another --out, move it away, or continue it with --resume"
        )


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


# --- arguments


def _parser() -> Parser:
    parser = Parser(
        prog="gratis",
        description="Train image classifiers that withstand adversarial examples, at about the "
        "price of ordinary training; attack them; show the result.",
        epilog="start with: gratis train digits --set budget.passes=4",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, call: Callable[[argparse.Namespace], int], epilog: str) -> Parser:
        added: Parser = commands.add_parser(
            name,
            help=call.__doc__,
            description=call.__doc__,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        added.set_defaults(call=call)
        return added

    one = command(
        "train",
        train,
        "keys that matter most (all of them, filled in, stand in a run's recipe.yaml):\n"
        "  budget.passes=25            passes per training image; a pass is forward, input\n"
        "                              gradient and weight gradient, a third each\n"
        "  method=free-8               natural, fgsm-rs, free-N, pgd-N, against the same ball\n"
        "  method.ball.eps=8/255       the radius; method.ball.norm=l2 for the other norm\n"
        "  data.root=DIR               where the files lie (else $GRATIS_DATA)\n"
        "  optimizer.learning_rate=0.1 guard.mode=off  seed=1\n\n"
        "examples:\n"
        "  gratis train digits --set budget.passes=4\n"
        "  gratis train cifar10 --set data.root=~/data method=free-8 budget.passes=30\n"
        "  gratis train cifar10 --set data.root=~/data method=free-8 budget.passes=30 --resume",
    )
    one.add_argument("recipe", metavar="RECIPE", help="a YAML file or a shipped recipe's name")
    _training_arguments(one)
    one.add_argument("--out", type=Path, help="run directory (default: runs/NAME)")

    many = command(
        "compare",
        compare,
        "a number in a method's name is its parameter: replays for free, steps for pgd\n"
        "example:\n  gratis compare natural fgsm-rs free-8 pgd-7 --data digits --budget 160 "
        "--out runs/demo",
    )
    many.add_argument(
        "method", metavar="METHOD", nargs="+", help="natural, fgsm-rs, free-8, pgd-7, ..."
    )
    many.add_argument(
        "--data", required=True, metavar="RECIPE", help="the recipe whose data, model and threat"
    )
    many.add_argument(
        "--budget", required=True, metavar="PASSES", help="passes per training image, each method"
    )
    _training_arguments(many)
    many.add_argument("--out", type=Path, required=True, help="directory of the run directories")

    attack = command(
        "evaluate",
        evaluate,
        "the same attack, threat, images and checkpoint replaces; anything else is added\n"
        "examples:\n  gratis evaluate runs/digits --attack pgd-100-5 --eps 0.1\n"
        "  gratis evaluate runs/digits/checkpoints/best.pt --limit 1000",
    )
    attack.add_argument(
        "run", metavar="RUN|CHECKPOINT", type=Path, help="a run directory or RUN/checkpoints/X.pt"
    )
    attack.add_argument(
        "--attack",
        action="append",
        metavar="ATTACK",
        help="pgd-STEPS[-RESTARTS][:alpha=8/255], repeatable (default: the recipe's); "
        "alpha is eps/4 unless given",
    )
    attack.add_argument("--eps", type=_eps, help="radius, as 8/255 or 0.1 (default: the recipe's)")
    attack.add_argument("--limit", type=_count, metavar="N", help="the first N test images")

    page = command("report", report, "example: gratis report runs/demo --out demo.html")
    page.add_argument("run", metavar="RUN", nargs="+", type=Path, help="run directories")
    page.add_argument("--out", type=Path, metavar="FILE", help="the page (default: in the RUN)")

    command("recipes", list_recipes, "a recipe is a short YAML file; copy one and change it")
    return parser


def _training_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="key=value",
        help="change the recipe: method=free-8, method.ball.eps=8/255, data.root=DIR, ...",
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def _eps(text: str) -> float:
    try:
        return number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images; give 1 or more")
    return int(text)
