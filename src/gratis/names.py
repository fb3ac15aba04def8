"""What people type: numbers such as 8/255, method names, attack names. Never imports torch,
so that a mistyped name is answered at once.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


def number(text: str) -> float:
    """0.1, 1e-3, 8/255; ValueError for anything else."""
    try:
        if "/" in text:
            top, bottom = text.split("/")
            value = float(Fraction(top.strip()) / Fraction(bottom.strip()))
        else:
            value = float(text)
        if math.isfinite(value):
            return value
    except (ValueError, ArithmeticError):
        pass
    raise ValueError(f"{text!r} is no number; write 0.03, 1e-3 or 8/255")


def spell(value: float) -> str:
    """The short way to write a number that `number` reads back equal: 8/255 for such a share."""
    if len(repr(value)) > 6 and abs(value) < 1000:
        share = round(value * 255)
        if share / 255 == value:
            return f"{share}/255"
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def nearest(given: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known name closest to `given`, or nothing."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


METHOD_NUMBERS: dict[str, tuple[str, ...]] = {
    "natural": ("replays",),
    "pgd": ("steps",),
    "fgsm": (),
    "fgsm-rs": (),
    "n-fgsm": (),
    "gradalign": (),
    "free": ("replays",),
    "yopo": ("rounds", "steps"),
    "trades": ("steps",),
    "advprop": ("steps",),
    "fast-advprop": (),
}
"""Every method's name and what the numbers after it set: free-8 is free with replays=8."""


def parse_method(name: str) -> dict[str, Any]:
    """{"name": "free", "replays": 8} for "free-8"; ValueError names the methods there are."""
    match = re.fullmatch(r"(.+?)((?:-\d+)*)", name)
    numbers = [int(n) for n in match[2].split("-")[1:]] if match else []
    if match and match[1] in METHOD_NUMBERS:
        keys = METHOD_NUMBERS[match[1]]
        if match[1] == "pgd" and not numbers:
            raise ValueError("pgd needs its number of steps: pgd-7")
        if len(numbers) in (0, len(keys)):
            return {"name": match[1], **dict(zip(keys, numbers, strict=False))}
    raise ValueError(
        f"no training method {name!r}{nearest(name, METHOD_NUMBERS)}; there are "
        f"{', '.join(_spelled(n, k) for n, k in METHOD_NUMBERS.items())} "
        "(N a number, as in free-8)"
    )


def _spelled(name: str, keys: tuple[str, ...]) -> str:
    return "-".join([name, *"NM"[: len(keys)]])


def spell_method(section: Mapping[str, Any]) -> str:
    """The name that parse_method reads back: "free-8"; a method's section of a recipe."""
    name = str(section["name"])
    numbers = [section.get(key) for key in METHOD_NUMBERS.get(name, ())]
    if None in numbers or (name, *numbers) == ("natural", 1):
        return name
    return "-".join([name, *map(str, numbers)])


@dataclass(frozen=True)
class AttackName:
    """An attack as typed, taken apart: `pgd-50-10:alpha=1/255`.

    kind: a key of ATTACKS.  steps, restarts: its numbers, 1 where it has none.
    alpha, flags: what follows the colon.
    """

    text: str
    kind: str
    steps: int
    restarts: int
    alpha: float | None
    flags: frozenset[str]


ATTACKS = {
    "fgsm": ("fgsm",),
    "bim": ("bim-STEPS",),
    "pgd": ("pgd-STEPS", "pgd-STEPS-RESTARTS"),
    "cw": ("cw-STEPS", "cw-STEPS-RESTARTS"),
    "apgd-ce": ("apgd-ce",),
    "apgd-dlr": ("apgd-dlr",),
    "apgd-t": ("apgd-t",),
    "fab-t": ("fab-t",),
    "square": ("square",),
    "autoattack": ("autoattack",),
}
"""Every kind of attack and the ways to spell it."""

ATTACKS_WITH_START = ("fgsm", "bim", "pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t")
"""Those that can be told where to begin."""

WITH_ALPHA = ("fgsm", "bim", "pgd", "cw")
FLAGS = {
    "climb-on": ("bim", "pgd", "cw"),
    "compatible": ("pgd",),
    "bf16": ("bim", "pgd", "cw"),
}
"""What may follow the colon besides alpha, and the kinds of attack that take it."""


SHIFTS = (
    *("imagenet-c", "cifar10-c", "cifar100-c", "imagenet-r", "stylized"),
    *("coco-c", "corruptions"),
)
"""Test images from another distribution. The last is always made here, from a run's own images;
coco-c, which has no official files, may be.
"""

GENERATED = "generated"


def parse_shift(text: str) -> tuple[str, str | None]:
    """("imagenet-c", "DIR") for imagenet-c=DIR, ("corruptions", None) for corruptions=generated;
    ValueError says what is wrong.
    """
    name, _, place = text.partition("=")
    if name not in SHIFTS:
        raise ValueError(
            f"no shift {name!r}{nearest(name, SHIFTS)}; there are "
            f"{', '.join(f'{known}=DIR' for known in SHIFTS[:-1])} and corruptions={GENERATED}"
        )
    if not place:
        how = GENERATED if name == "corruptions" else "DIR, the directory that holds its files"
        raise ValueError(f"shift {text!r}: write {name}={how}")
    if name != "coco-c" and (name == "corruptions") != (place == GENERATED):
        raise ValueError(
            f"shift {text!r}: corruptions={GENERATED} makes corrupted images from the run's own; "
            "they are not those of a benchmark, whose files are found as NAME=DIR"
        )
    return name, None if place == GENERATED else place


def parse_attack(text: str) -> AttackName:
    """pgd-STEPS[-RESTARTS][:alpha=8/255] and the like; ValueError says what is wrong."""
    head, _, tail = text.partition(":")
    match = re.fullmatch(r"(.+?)((?:-\d+)*)", head)
    kind = match[1] if match else ""
    numbers = [int(n) for n in match[2].split("-")[1:]] if match else []
    shapes = {sum(part.isupper() for part in form.split("-")) for form in ATTACKS.get(kind, ())}
    if len(numbers) not in shapes or 0 in numbers:
        forms = ", ".join(form for kind_forms in ATTACKS.values() for form in kind_forms)
        guess = "" if kind in ATTACKS else nearest(kind, ATTACKS)
        raise ValueError(
            f"no attack {text!r}{guess}; there are {forms} (numbers at least 1), the first ones "
            "also with a step size, as in pgd-50-10:alpha=2/255"
        )
    if tail and kind not in WITH_ALPHA:
        raise ValueError(f"attack {text!r}: {kind} takes no options, it is always the same")
    alpha, flags = None, set()
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if key in FLAGS and kind in FLAGS[key] and not equals:
            flags.add(key)
        elif key == "alpha" and equals:
            alpha = number(value)
        else:
            taken = ["alpha=NUMBER", *(flag for flag, kinds in FLAGS.items() if kind in kinds)]
            raise ValueError(
                f"attack {text!r} has no option {part!r}{nearest(key, ('alpha', *FLAGS))}; "
                f"it takes {', '.join(taken)}"
            )
    if alpha is not None and not alpha > 0:
        raise ValueError(f"attack {text!r}: alpha must be positive")
    if len(flags) > 1:
        raise ValueError(f"attack {text!r}: {' and '.join(sorted(flags))} exclude each other")
    steps, restarts = [*numbers, 1, 1][:2]
    return AttackName(text, kind, steps, restarts, alpha, frozenset(flags))
