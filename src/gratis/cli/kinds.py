"""What the arguments of the commands share: the parser, kinds of values, --set."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from gratis.names import number as read_number

UNUSABLE = 2

Call = Callable[[argparse.Namespace], int]
Command = Callable[[str, str], "Parser"]
"""Adds a command: its name and what stands below its help."""


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def training_arguments(parser: Parser) -> None:
    setting_argument(parser)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def shift_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--shift",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="images from another distribution: imagenet-c, cifar10-c, cifar100-c, imagenet-r or "
        "stylized in DIR, or corruptions=generated, made from the test images; coco-c, either way; "
        "repeatable",
    )


def setting_argument(parser: Parser) -> None:
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="key=value",
        help="change the recipe: method=free-8, method.ball.eps=8/255, data.root=DIR, ...",
    )


def number(text: str) -> float:
    try:
        return read_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number, 1 or more")
    return int(text)
