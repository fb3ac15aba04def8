"""The arguments of the command line: which commands there are, what each takes, its help."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from gratis.names import number

UNUSABLE = 2

Call = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser(calls: Mapping[str, Call]) -> Parser:
    """The parser of `gratis`; calls: what each command runs, its docstring the command's help."""
    parser = Parser(
        prog="gratis",
        description="Train image classifiers that withstand adversarial examples, at about the "
        "price of ordinary training; attack them; show the result.",
        epilog="start with: gratis train digits --set budget.passes=4",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, epilog: str) -> Parser:
        call = calls[name]
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
        help="fgsm, bim-K, pgd-K-R, cw-K-R (K steps, R restarts), each also with :alpha=8/255; "
        "repeatable (default: the recipe's); alpha is eps/4 unless given",
    )
    attack.add_argument(
        "--eps", type=_number, help="radius, as 8/255 or 0.1 (default: the recipe's)"
    )
    attack.add_argument("--limit", type=_count, metavar="N", help="the first N test images")

    proof = command(
        "verify",
        "for small networks of Conv2d, Linear, ReLU and the like, such as mnist-net: an attack,\n"
        "bounds, then branch and bound. Verdicts are kept: the same command goes on after Ctrl-C\n"
        "example:\n  gratis verify runs/mnist --eps 0.1 --limit 1000 --time-limit 60",
    )
    proof.add_argument(
        "run", metavar="RUN|CHECKPOINT", type=Path, help="a run directory or RUN/checkpoints/X.pt"
    )
    proof.add_argument(
        "--eps", type=_number, help="radius, as 8/255 or 0.1 (default: the recipe's)"
    )
    proof.add_argument("--limit", type=_count, metavar="N", help="the first N test images")
    proof.add_argument(
        "--time-limit",
        type=_number,
        default=60.0,
        metavar="SECONDS",
        help="branch and bound on one image (default: %(default)g)",
    )

    page = command("report", "example: gratis report runs/demo --out demo.html")
    page.add_argument("run", metavar="RUN", nargs="+", type=Path, help="run directories")
    page.add_argument("--out", type=Path, metavar="FILE", help="the page (default: in the RUN)")

    rates = command(
        "lr-range",
        "the rate rises by the same factor at every update; method, data, model and optimizer\n"
        "are the recipe's, its schedule and budget are not used\n"
        "example:\n  gratis lr-range cifar10 --set data.root=~/data --from 0.001 --to 2",
    )
    rates.add_argument("recipe", metavar="RECIPE", help="a YAML file or a shipped recipe's name")
    _setting_argument(rates)
    for flag, name, rate in (("--from", "low", 1e-4), ("--to", "high", 10.0)):
        shown = "default: %(default)g"
        rates.add_argument(flag, dest=name, type=_number, default=rate, metavar="RATE", help=shown)
    rates.add_argument(
        "--updates", type=_count, default=200, metavar="N", help="default: %(default)d"
    )
    rates.add_argument("--out", type=Path, help="directory (default: runs/lr-range/NAME)")

    tables = command(
        "reproduce",
        "without a TABLE: what there is. Finished rows are not made again, interrupted ones go\n"
        "on; status 1 if a row that was asked for is not done\n"
        "  smoke   every row in about a second, no data needed: not a result\n"
        "  cpu     the smallest setting on real data that may show the paper's ordering, in hours\n"
        "  paper   the paper's setting\n"
        "examples:\n  gratis reproduce all --scale smoke\n"
        "  gratis reproduce fast-table1 --rows 'fgsm-*' --set data.root=DIR",
    )
    tables.add_argument("table", metavar="TABLE", nargs="*", help="fast-table1, ..., or all")
    tables.add_argument("--scale", choices=("smoke", "cpu", "paper"), default="cpu")
    tables.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="these alone (patterns: 'fgsm-*')"
    )
    _setting_argument(tables)
    tables.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / "reproduce",
        help="directory (default: runs/reproduce; in it TABLE/SCALE)",
    )

    command("recipes", "a recipe is a short YAML file; copy one and change it")
    return parser


def _training_arguments(parser: Parser) -> None:
    _setting_argument(parser)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def _setting_argument(parser: Parser) -> None:
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="key=value",
        help="change the recipe: method=free-8, method.ball.eps=8/255, data.root=DIR, ...",
    )


def _number(text: str) -> float:
    try:
        return number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number, 1 or more")
    return int(text)
