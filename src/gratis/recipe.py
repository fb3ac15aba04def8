"""Recipes: what to train, on what, at which budget, and how it will be judged.

A recipe is a YAML file (or a dict) of the dataclasses below. The shipped ones lie in
`recipes/` as package data. Importing this module does not import torch.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from gratis.names import nearest, parse_attack, parse_method
from gratis.schema import construct, plain

if TYPE_CHECKING:
    from gratis.balls import Ball
    from gratis.passes import Method

Plain = dict[str, Any]


@dataclass(frozen=True)
class About:
    """What a reader wants to know before running: the source, and what came out where."""

    title: str = ""
    paper: str = ""
    expected: str = ""
    hardware: str = ""


@dataclass(frozen=True)
class Data:
    """name: digits, mnist, fashion-mnist, cifar10, cifar100, folder, or module:function.
    root: where the files lie; else $GRATIS_DATA.  holdout: share (below 1) or number of the
    training images kept for checks, at most 1,000.  augment: crop-N (zero padding), flip.
    image_size: folder images are resized and centre-cropped to it, in pixels.
    """

    name: str
    root: str | None = None
    batch_size: int = 128
    holdout: float = 0.02
    augment: tuple[str, ...] = ()
    image_size: int | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.holdout < 0:
            raise ValueError(f"holdout={self.holdout} must be 0 or more")


@dataclass(frozen=True)
class Model:
    """name: as in gratis.nn.MODELS, timm:NAME or module:function.
    options: the builder's own.  mean, std: normalisation per channel, the model's first layer.
    norm_momentum: of every batch norm; Free replays each minibatch m times, so that at the
    usual 0.1 the last one makes up 1 - 0.9^m of the running statistics.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm_momentum: float | None = None


@dataclass(frozen=True)
class Optimizer:
    """decay: whether weight decay takes all parameters or spares norms and biases."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: Literal["all", "weights"] = "all"


@dataclass(frozen=True)
class Budget:
    """passes: per training image, as this package counts; or data_passes, as papers' epochs."""

    passes: float | None = None
    data_passes: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.passes, self.data_passes) if v is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of passes and data_passes (to change from one to the other: "
                "--set budget.data_passes=null budget.passes=15)"
            )
        if not given[0] > 0:
            raise ValueError(f"a budget of {given[0]} buys nothing; give a positive number")


@dataclass(frozen=True)
class Engine:
    """precision: of weights' products; perturbations and evaluation are always fp32.
    probe_norm: batch-norm behaviour in attacks while training (gratis.passes.Prober).
    ema: decay of averaged weights per update; they are then what is checked and evaluated.
    """

    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    probe_norm: Literal["batch", "tracked", "eval"] = "batch"
    ema: float | None = None
    checkpoint_seconds: float = 30.0


@dataclass(frozen=True)
class Check:
    """A cheap look at held-out training images: every so many data passes, PGD on some images."""

    every: float = 1.0
    images: int = 256
    attack: str = "pgd-10"

    def __post_init__(self) -> None:
        parse_attack(self.attack)
        if not self.every > 0 or self.images < 1:
            raise ValueError("every and images must be positive")


@dataclass(frozen=True)
class Guard:
    """mode: "recover" undoes catastrophic overfitting and goes on; "early-stop" is Wong 2020's
    own (PGD-5 on the first minibatch of each epoch, a drop over 20 points); "off".
    """

    mode: Literal["recover", "early-stop", "off"] = "recover"


@dataclass(frozen=True)
class Evaluation:
    """attacks: names, each run at every eps.  eps: None takes the method's own.
    norm: None takes the method's.  limit: how many test images, all unless given.
    batch_size: images attacked at a time, which changes no outcome but rounding; None takes
    twice the training batch.
    """

    attacks: tuple[str, ...] = ("pgd-50-10",)
    eps: tuple[float, ...] | None = None
    norm: Literal["linf", "l2"] | None = None
    limit: int | None = None
    checkpoint: Literal["last", "best"] = "last"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for attack in self.attacks:
            parse_attack(attack)
        if not self.attacks:
            raise ValueError("attacks is empty; name at least one attack, such as pgd-50-10")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 image")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")


@dataclass(frozen=True)
class Schedule:
    """shape of the learning rate, per update, over exactly the updates of the run.
    peak: share of the run at which a cyclic rate is highest (2/5 in Wong 2020's text, 1/2 in
    its CIFAR code).  drops, factor: shares of the run at which a piecewise rate is multiplied.
    cycle_momentum: from 0.9 down to 0.8 at the peak and back, as PyTorch's CyclicLR does
    unless told otherwise, and so the released Fast code did.
    """

    shape: Literal["cyclic", "piecewise", "cosine", "constant"] = "cyclic"
    peak: float = 0.4
    drops: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    cycle_momentum: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.peak < 1:
            raise ValueError(f"peak={self.peak} must lie between 0 and 1")


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

    @property
    def defends(self) -> bool:
        return self.method.get("name") != "natural"

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

    def evaluation_balls(self) -> "list[Ball]":
        """The threat models that the run is judged under, largest promise first as written."""
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
    return result


def with_method(section: Plain, name: str) -> Plain:
    """The method section for `name` (as typed: free-8) against the same ball as `section`."""
    return {**parse_method(name), **({"ball": section["ball"]} if "ball" in section else {})}


def load(recipe: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe and apply dotted key=value settings to it."""
    return from_plain(override(read(recipe), settings))
