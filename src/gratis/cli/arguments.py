"""The arguments of the command line: which commands there are, what each takes, its help."""

import argparse
from collections.abc import Mapping

from gratis.cli import judging_arguments as judging
from gratis.cli import training_arguments as training
from gratis.cli.kinds import Call, Parser


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

    training.train(command)
    training.compare(command)
    judging.evaluate(command)
    judging.verify(command)
    judging.pictures(command)
    judging.report(command)
    judging.export(command)
    training.lr_range(command)
    training.reproduce(command)
    command("recipes", "a recipe is a short YAML file; copy one and change it")
    return parser
