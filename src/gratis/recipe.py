"""Recipes: what to train, on what, at which budget, and how it will be judged.

A recipe is a YAML file (or a dict) of the dataclasses in `sections`. The shipped ones lie in
`recipes/` as package data. Importing this module does not import torch.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gratis.names import nearest, parse_method
from gratis.schema import construct, plain
from gratis.sections import (
    About,
    Budget,
    Check,
    Data,
    Engine,
    Evaluation,
    Guard,
    Model,
    Optimizer,
    Phase,
    Schedule,
    Task,
)

if TYPE_CHECKING:
    from gratis.balls import Ball
    from gratis.passes import Method

Plain = dict[str, Any]

DETECTION_METHODS = ("natural", "fast-advprop", "pgd", "fgsm", "fgsm-rs", "n-fgsm", "free")
"""Those that learn and attack by the task's own loss."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run. `method` is {name, ball: {norm, eps}, ...}; natural
    training takes a ball too: what it is judged under.
    """

    name: str
    data: Data
    model: Model
    method: dict[str, Any]
    optimizer: Optimizer
    budget: Budget
    schedule: Schedule = field(default_factory=Schedule)
    phases: tuple[Phase, ...] = ()
    task: Task = field(default_factory=Task)
    engine: Engine = field(default_factory=Engine)
    check: Check = field(default_factory=Check)
    guard: Guard = field(default_factory=Guard)
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0
    about: About = field(default_factory=About)

    def __post_init__(self) -> None:
        if self.guard.mode == "recover" and self.data.holdout == 0 and self.defends:
            raise ValueError(
                "the guard checks held-out training images, but data.holdout is 0; "
                "hold some out, or --set guard.mode=off"
            )

        if self.evaluation.checkpoint == "best" and self.data.holdout == 0:
            raise ValueError(
                "evaluation.checkpoint=best is chosen on held-out training images, but "
                "data.holdout is 0; hold some out, or take last"
            )
        shares = sum(phase.share for phase in self.phases)
        if self.phases and abs(shares - 1) > 1e-6:
            raise ValueError(f"phases: their shares add up to {shares:g}; they must to 1")
        resized = any(phase.image_size or phase.stored for phase in self.phases)
        if resized and self.data.stored is None:
            raise ValueError(
                "phases: image_size and stored change what is read from disk; set data.stored"
            )
        if self.phases and (self.data.labels is not None or self.data.unlabelled is not None):
            raise ValueError("phases: images without labels have none; leave one of the two out")
        assert self.stages  # each is checked as it is made
        if self.detects:
            self._check_detection()

    def _check_detection(self) -> None:
        """ValueError for what has no meaning where images have boxes and not one class."""
        method = str(self.method.get("name"))
        if method not in DETECTION_METHODS:
            raise ValueError(
                f"method.name: {method} has no use for boxes; for detection there are "
                f"{', '.join(DETECTION_METHODS)}"
            )
        if self.guard.mode != "off" or self.data.holdout:
            raise ValueError(
                "checks while training ask for one class an image, which detection has not: set "
                "guard.mode=off and data.holdout=0"
            )
        if any(name != "flip" for name in self.data.augment):
            raise ValueError("data.augment: boxes follow a flip, no crop; leave all but flip out")
        if self.data.labels or self.data.unlabelled:
            raise ValueError("data: labels and unlabelled are for one class an image")
        classes_alone = ("only_correct", "targeted")
        if self.method.get("mix", "none") != "none" or any(map(self.method.get, classes_alone)):
            raise ValueError("method: mix, only_correct and targeted are for one class an image")
        reuses = method == "fast-advprop" and self.method.get("reuse", True)
        if self.task.attack != "sum" and reuses:
            raise ValueError(
                f"task.attack={self.task.attack}: fast-advprop climbs the loss that it learns, "
                "whose backward it reuses; set method.reuse=false, which costs a probe"
            )

    @property
    def stages(self) -> tuple[Data, ...]:
        """`data` as each phase changes it, in order; `data` alone where there are no phases."""
        keys = ("batch_size", "image_size", "stored")
        changes = [{k: getattr(phase, k) for k in keys} for phase in self.phases]
        return tuple(
            dataclasses.replace(self.data, **{k: v for k, v in change.items() if v is not None})
            for change in changes
        ) or (self.data,)

    @property
    def detects(self) -> bool:
        return self.task.name == "detection"

    @property
    def defends(self) -> bool:
        """Whether the method promises robustness, rather than accuracy."""
        return self.method.get("name") not in ("natural", "advprop", "fast-advprop")

    def plain(self) -> Plain:
        """As YAML types, every default filled in, so that it reads back the same."""
        built = self.build_method()
        resolved: Plain = {"name": self.method["name"]}
        for key in _parameters(self.method["name"]):
            value = getattr(built, f"resolved_{key}", getattr(built, key))
            resolved[key] = _plain_ball(value) if key == "ball" else value
        if "ball" not in resolved and "ball" in self.method:
            resolved["ball"] = _plain_ball(_build_ball(self.method["ball"], "method.ball"))
        everything = dataclasses.asdict(dataclasses.replace(self, method=resolved))
        return {key: plain(value) for key, value in everything.items()}

    def build_method(self) -> "Method":
        """A fresh method object, its state empty."""
        from gratis.balls import Ball
        from gratis.methods import METHODS

        values = dict(self.method)
        name = values.pop("name", None)
        if name not in METHODS:
            raise ValueError(
                f"method.name: {name!r}{nearest(str(name), METHODS)} is none of "
                f"{', '.join(METHODS)}"
            )
        if "ball" not in _parameters(name):
            values.pop("ball", None)
        return construct(METHODS[name], values, "method", {Ball: _build_ball})

    def check_method(self) -> None:
        """ValueError for a method, or a threat to judge it under, that there is not."""
        if self.detects:
            self.build_method()
        else:
            self.evaluation_balls()

    def evaluation_balls(self) -> "list[Ball]":
        """The threat models that the run is judged under, largest promise first as written.

        Raises ValueError for a recipe without one, such as every one that finds boxes.
        """
        if self.detects:
            raise ValueError(
                f"{self.name} finds boxes, which are judged by mean average precision and not "
                "attacked; this is for runs with task.name=classification"
            )
        own = self.build_method().ball
        if own is None and "ball" in self.method:
            own = _build_ball(self.method["ball"], "method.ball")
        values = _plain_ball(own) if own is not None else {}
        if self.evaluation.norm is not None:
            values["norm"] = self.evaluation.norm
        radii = self.evaluation.eps or ((values["eps"],) if "eps" in values else ())
        if not radii or "norm" not in values:
            raise ValueError(
                "no threat model to evaluate under; natural training needs method.ball "
                "as well, though it does not defend against it"
            )
        return [_build_ball({**values, "eps": eps}, "evaluation") for eps in radii]


def _parameters(method: str) -> list[str]:
    import inspect

    from gratis.methods import METHODS

    return list(inspect.signature(METHODS[method]).parameters)


def _plain_ball(ball: "Ball") -> Plain:
    return {"norm": ball.norm, **dataclasses.asdict(ball)}


def _build_ball(values: Any, where: str) -> "Ball":
    from gratis.balls import BALLS

    values = dict(values) if isinstance(values, Mapping) else {"eps": values}
    norm = values.pop("norm", "linf")
    if norm not in BALLS:
        raise ValueError(
            f"{where}.norm: {norm!r}{nearest(str(norm), BALLS)} is none of {', '.join(BALLS)}"
        )
    return construct(BALLS[norm], values, where)


def from_plain(values: Plain) -> Recipe:
    """A recipe from YAML types; ValueError names the key that does not fit."""
    return construct(Recipe, values, "")


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("gratis") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read(recipe: str | Path) -> Plain:
    """The YAML of a recipe file, or of a shipped recipe by name; ValueError if there is none."""
    path = Path(recipe)
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
            raise ValueError(f"no recipe file {recipe}")
        names = shipped()
        if str(recipe) not in names:
            raise ValueError(
                f"no recipe {str(recipe)!r}{nearest(str(recipe), names)}; "
                f"shipped: {', '.join(names)}; or give a YAML file"
            )
        path = names[str(recipe)]
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} should hold a mapping of keys (name, data, model, ...)")
    values.setdefault("name", path.stem)
    return values


BUDGETS = {"budget.passes": "data_passes", "budget.data_passes": "passes"}


def override(values: Plain, settings: Iterable[str]) -> Plain:
    """`values` with dotted key=value settings applied; a value is read as YAML.

    method=free-8 changes the method and keeps its ball. Values keep the recipe's others.
    """
    result: Plain = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting!r} should read key=value, as in budget.passes=4")
        if key == "method":
            result["method"] = with_method(result.get("method") or {}, text)
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        place = result
        *path, last = key.split(".")
        for part in path:
            below = place.setdefault(part, {})
            if below is None:
                below = {}
            if not isinstance(below, dict):
                raise ValueError(f"--set {key}: {part} holds {below!r}, not further keys")
            place[part] = below = dict(below)
            place = below
        place[last] = value
        if key in BUDGETS and value is not None:
            place.pop(BUDGETS[key], None)  # stating the budget one way takes back the other
    return result


def with_method(section: Plain, name: str) -> Plain:
    """The method section for `name` (as typed: free-8) against the same ball as `section`."""
    return {**parse_method(name), **({"ball": section["ball"]} if "ball" in section else {})}


def load(recipe: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe and apply dotted key=value settings to it."""
    return from_plain(override(read(recipe), settings))
