"""The arguments of the command line: which commands there are, what each takes, its help."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from gratis.names import number

UNUSABLE = 2

Call = Callable[[argparse.Namespace], int]
Command = Callable[[str, str], "Parser"]
"""Adds a command: its name and what stands below its help."""


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

    _train(command)
    _compare(command)
    _evaluate(command)
    _verify(command)
    _pictures(command)
    _export(command)
    _lr_range(command)
    _reproduce(command)
    command("recipes", "a recipe is a short YAML file; copy one and change it")
    return parser


def _train(command: Command) -> None:
    one = command(
        "train",
        "keys that matter most (all of them, filled in, stand in a run's recipe.yaml):\n"
        "  budget.passes=25            passes per training image; a pass is forward, input\n"
        "                              gradient and weight gradient, a third each\n"
        "  method=free-8               natural, fgsm-rs, free-N, pgd-N, against the same ball\n"
        "  method.ball.eps=8/255       the radius; method.ball.norm=l2 or l1 for the others\n"
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


def _compare(command: Command) -> None:
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


def _evaluate(command: Command) -> None:
    attack = command(
        "evaluate",
        "the same attack, threat, images and checkpoint replaces; anything else is added; an\n"
        "interrupted evaluation goes on where it was\n"
        "examples:\n  gratis evaluate runs/digits --attack pgd-100-5 --eps 0.1\n"
        "  gratis evaluate runs/digits/checkpoints/best.pt --attack autoattack --limit 1000\n"
        "  gratis evaluate my_models:build --weights net.pt --data cifar10 --out runs/theirs",
    )
    attack.add_argument(
        "run",
        metavar="RUN|CHECKPOINT|MODULE:FUNCTION",
        type=Path,
        help="a run directory, RUN/checkpoints/X.pt, or a function that returns a network from "
        "pixels in [0, 1] to logits",
    )
    attack.add_argument(
        "--attack",
        action="append",
        metavar="ATTACK",
        help="fgsm, bim-K, pgd-K-R, cw-K-R (K steps, R restarts), each also with :alpha=8/255, "
        "apgd-ce, apgd-t, fab-t, square, autoattack; repeatable (default: the recipe's); alpha is "
        "eps/4 unless given",
    )
    attack.add_argument(
        "--eps", type=_number, help="radius, as 8/255 or 0.1 (default: the recipe's)"
    )
    attack.add_argument("--limit", type=_count, metavar="N", help="the first N test images")
    attack.add_argument(
        "--union",
        action="store_true",
        help="give each attack only what the ones before left: the worst case alone, for less",
    )
    attack.add_argument(
        "--checks",
        choices=("none", "quick", "full"),
        default="quick",
        help="signs of gradient masking: those that cost little beside the attacks, or all "
        "(default: %(default)s; full with autoattack)",
    )
    attack.add_argument(
        "--surrogate",
        type=Path,
        metavar="RUN",
        help="another run on the same data, for the check whether its adversarial points transfer",
    )
    attack.add_argument(
        "--save-adversarial", action="store_true", help="keep every point in RUN/adversarial"
    )
    attack.add_argument(
        "--data", metavar="RECIPE", help="for MODULE:FUNCTION: the recipe with images and threat"
    )
    attack.add_argument("--weights", type=Path, metavar="FILE", help="its state dict")
    attack.add_argument("--out", type=Path, metavar="DIR", help="the run directory made for it")
    _setting_argument(attack)


def _verify(command: Command) -> None:
    proof = command(
        "verify",
        "for small networks of Conv2d, Linear, ReLU and the like, such as mnist-net: an attack,\n"
        "bounds, branch and bound, and with pip install 'gratis[verify]' linear and integer\n"
        "programs. Verdicts are kept: the same command goes on after Ctrl-C, and a longer\n"
        "--time-limit tries the undecided images alone again; status 1 if SCIP disagrees\n"
        "examples:\n  gratis verify runs/mnist --eps 0.1 --limit 1000 --time-limit 60\n"
        "  gratis verify runs/mnist --eps 0.1 --limit 1000 --cross-check 10",
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
        help="branch and bound on one image, and as long again SCIP (default: %(default)g)",
    )
    proof.add_argument(
        "--cross-check",
        type=_count,
        default=0,
        metavar="N",
        help="then solve N decided images, the hardest first, with SCIP alone and compare",
    )


def _pictures(command: Command) -> None:
    views = command(
        "pictures",
        "the arrays stay in each RUN (views.npz), so that `gratis report` shows them too; what is\n"
        "there for the same checkpoint and settings is not computed again\n"
        "examples:\n  gratis pictures runs/demo\n"
        "  gratis pictures runs/free-8 runs/pgd-7 --eps 30/255 --out side-by-side.html",
    )
    views.add_argument(
        "run", metavar="RUN", nargs="+", type=Path, help="run directories, of the same data"
    )
    views.add_argument(
        "--eps",
        type=_number,
        default=30 / 255,
        help="the large Linf radius that images are attacked at (default: 30/255)",
    )
    views.add_argument(
        "--limit",
        type=_count,
        default=200,
        metavar="N",
        help="find where the first N test images fall (default: %(default)d)",
    )
    views.add_argument("--out", type=Path, metavar="FILE", help="the page (default: in the RUN)")

    page = command("report", "example: gratis report runs/demo --out demo.html")
    page.add_argument("run", metavar="RUN", nargs="+", type=Path, help="run directories")
    page.add_argument("--out", type=Path, metavar="FILE", help="the page (default: in the RUN)")


def _export(command: Command) -> None:
    copy = command(
        "export",
        "what is written is read back and compared first\n"
        "  weights      a state dict, normalisation among it\n"
        "  torch        a program of torch.export\n"
        "  onnx         with pip install 'gratis[export]'\n"
        "  robustbench  the JSON entry of an autoattack result\n"
        "examples:\n  gratis export runs/cifar10 --as onnx --out net.onnx\n"
        "  gratis export runs/cifar10 --as robustbench --about authors='A. Author' --out net.json",
    )
    copy.add_argument(
        "run", metavar="RUN|CHECKPOINT", type=Path, help="a run directory or RUN/checkpoints/X.pt"
    )
    copy.add_argument(
        "--as", dest="kind", choices=("weights", "torch", "onnx", "robustbench"), required=True
    )
    copy.add_argument("--out", type=Path, metavar="FILE", required=True, help="a new file")
    copy.add_argument(
        "--about",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="for robustbench, what a run does not know: authors, venue, link, ...",
    )


def _lr_range(command: Command) -> None:
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


def _reproduce(command: Command) -> None:
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
