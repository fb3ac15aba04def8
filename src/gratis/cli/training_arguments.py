"""What the commands that train take."""

from pathlib import Path

from gratis.cli.kinds import (
    Command,
    count,
    number,
    setting_argument,
    shift_arguments,
    training_arguments,
)


def train(command: Command) -> None:
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
    training_arguments(one)
    one.add_argument("--out", type=Path, help="run directory (default: runs/NAME)")


def compare(command: Command) -> None:
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
    training_arguments(many)
    many.add_argument("--out", type=Path, required=True, help="directory of the run directories")


def lr_range(command: Command) -> None:
    rates = command(
        "lr-range",
        "the rate rises by the same factor at every update; method, data, model and optimizer\n"
        "are the recipe's, its schedule and budget are not used\n"
        "example:\n  gratis lr-range cifar10 --set data.root=~/data --from 0.001 --to 2",
    )
    rates.add_argument("recipe", metavar="RECIPE", help="a YAML file or a shipped recipe's name")
    setting_argument(rates)
    for flag, name, rate in (("--from", "low", 1e-4), ("--to", "high", 10.0)):
        shown = "default: %(default)g"
        rates.add_argument(flag, dest=name, type=number, default=rate, metavar="RATE", help=shown)
    rates.add_argument(
        "--updates", type=count, default=200, metavar="N", help="default: %(default)d"
    )
    rates.add_argument("--out", type=Path, help="directory (default: runs/lr-range/NAME)")


def reproduce(command: Command) -> None:
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
    setting_argument(tables)
    shift_arguments(tables)
    tables.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / "reproduce",
        help="directory (default: runs/reproduce; in it TABLE/SCALE)",
    )
