"""How training runs: optimizer, schedule, budget, engine."""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class Optimizer:
    """learning_rate: the highest of the run, at any batch size; with per_images, that of a
    batch of so many images: a batch k times as large takes k times the rate (scaling: linear,
    Goyal 2017) or the root of k times (sqrt, You 2020).
    decay: whether weight decay takes all parameters or spares norms and biases.
    fallback: with muon, the rate of what is no convolution, in units of learning_rate.
    layerwise: with lars and lamb, whether all parameters take layer-wise rates, or norms and
    biases plain ones.  bias_correction: of lamb's averages, as in Adam.  weight_norm_clip: the
    largest norm that a weight counts with in lamb; null for no limit.
    Raises ValueError for a choice that the named optimizer has no use for.
    """

    name: Literal["sgd", "adam", "adamw", "muon", "lars", "lamb"] = "sgd"
    learning_rate: float = 0.1
    per_images: int | None = None
    scaling: Literal["linear", "sqrt"] = "linear"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: Literal["all", "weights"] = "all"
    fallback: float = 1.0
    layerwise: Literal["all", "weights"] = "all"
    bias_correction: bool = False
    weight_norm_clip: float | None = 10.0

    def __post_init__(self) -> None:
        defaults = {entry.name: entry.default for entry in fields(self)}
        for key, users in OPTIMIZERS_WITH.items():
            value = getattr(self, key)
            if self.name not in users and value != defaults[key]:
                raise ValueError(
                    f"{key}={value} is for {' and '.join(users)}, {self.name} has no use for it; "
                    f"leave it out or set it back to {defaults[key]}"
                )
        if self.per_images is None and self.scaling != "linear":
            raise ValueError(
                f"scaling={self.scaling} scales nothing by itself; give per_images, the batch "
                "that learning_rate is meant for"
            )
        if self.per_images is not None and self.per_images < 1:
            raise ValueError(f"per_images={self.per_images} must be at least 1 image")

    def rate(self, batch_size: int) -> float:
        """The learning rate for batches of so many images, those of all processes together."""
        larger = 1.0 if self.per_images is None else batch_size / self.per_images
        return self.learning_rate * (larger**0.5 if self.scaling == "sqrt" else larger)


OPTIMIZERS_WITH = {
    "nesterov": ("sgd", "muon"),
    "fallback": ("muon",),
    "layerwise": ("lars", "lamb"),
    "bias_correction": ("lamb",),
    "weight_norm_clip": ("lamb",),
}
"""Which optimizers have a use for what not all of them have."""


@dataclass(frozen=True)
class Schedule:
    """shape of the learning rate, per update, over exactly the updates of the run.
    peak: share of the run at which a cyclic rate is highest (2/5 in Wong 2020's text, 1/2 in
    its CIFAR code).  drops, factor: shares of the run at which a piecewise rate is multiplied.
    warmup: share of the run in which the rate first climbs, linearly by update, to where the
    shape begins; the shape then has the rest of the run for itself, and drops are shares of that
    rest: 5 passes of warm-up before 100 of the shape are a warmup of 5/105. Not for cyclic.
    knots: with the shape knots, (share of the run, share of learning_rate) from (0, ...) to
    (1, ...); the rate is linear between them, each update's where the update ends.
    cycle_momentum: from 0.9 down to 0.8 at the peak and back, as PyTorch's CyclicLR does
    unless told otherwise, and so the released Fast code did.
    """

    shape: Literal["cyclic", "piecewise", "cosine", "constant", "knots"] = "cyclic"
    peak: float = 0.4
    drops: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    warmup: float = 0.0
    knots: tuple[tuple[float, ...], ...] = ()
    cycle_momentum: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.peak < 1:
            raise ValueError(f"peak={self.peak} must lie between 0 and 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is no share of the run; give 5/105, say")
        if self.warmup and self.shape == "cyclic":
            raise ValueError("warmup: a cyclic rate climbs by itself; set peak, or another shape")
        self._check_knots()

    def _check_knots(self) -> None:
        if (self.shape == "knots") != bool(self.knots):
            raise ValueError("knots: the shape knots needs them, and no other has a use for them")
        if not self.knots:
            return
        if any(len(knot) != 2 for knot in self.knots):
            raise ValueError("knots: each is a pair, (share of the run, share of learning_rate)")
        places = [place for place, _ in self.knots]
        if places[0] != 0 or places[-1] != 1 or places != sorted(set(places)):
            raise ValueError(f"knots at {places} of the run must rise from 0 to 1")
        if not all(0 <= rate <= 1 for _, rate in self.knots):
            raise ValueError("knots: rates are shares of learning_rate, from 0 to 1")


@dataclass(frozen=True)
class Phase:
    """A part of the run that sees images in a way of its own; what is None is as in `data`.

    share: of the run's data passes; it begins and ends with a whole one.  image_size, stored: as
    in Data, for streamed images.
    """

    share: float
    batch_size: int | None = None
    image_size: int | None = None
    stored: int | Literal["files"] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1")


@dataclass(frozen=True)
class Budget:
    """passes: per training image, as this package counts; or data_passes, as papers' epochs."""

    passes: float | None = None
    data_passes: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.passes, self.data_passes) if v is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of passes (per training image) and data_passes (the papers' epochs)"
            )
        if not given[0] > 0:
            raise ValueError(f"a budget of {given[0]} buys nothing; give a positive number")


@dataclass(frozen=True)
class Engine:
    """precision: of weights' products; perturbations and evaluation are always fp32. "auto" is
    bf16 where the machine has instructions for it, else fp32; the log says which.
    probe_norm: batch-norm behaviour in attacks while training (gratis.prober.Prober).
    ema: decay of averaged weights per update; they are then what is checked and evaluated.
    compile: "auto" times a pass and a probe, compiled and not, before the first update and uses
    the faster; "on" does not ask. Both cost a minute or so, which the log states.
    graph: on CUDA, whether batches are learned by replaying a recording of the kernels
    (gratis.graphs): "auto" where a first try finds replays right and faster, "on" where right.
    parts: every batch is learned in so many equal parts, which the processes share out; each
    takes its parts one after the other, and batch norms see each part by itself. So the run stays
    the same run however many processes there are, one included. None for as many as begin it.
    patience_seconds: how long processes wait for each other before they give up with an error.
    gradients: how they travel between processes (docs/gradients.md); one process sends none.
    """

    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    channels_last: bool = False
    probe_norm: Literal["batch", "tracked", "eval"] = "batch"
    ema: float | None = None
    compile: Literal["off", "auto", "on"] = "off"
    graph: Literal["off", "auto", "on"] = "off"
    checkpoint_seconds: float = 30.0
    parts: int | None = None
    patience_seconds: float = 600.0
    gradients: Literal[
        "fp32", "bf16", "fp16", "powersgd", "q8", "q4", "q8-two-sided", "q4-two-sided"
    ] = "fp32"

    def __post_init__(self) -> None:
        if self.parts is not None and self.parts < 1:
            raise ValueError(f"parts={self.parts} must be at least 1")
        if not self.patience_seconds > 0:
            raise ValueError(f"patience_seconds={self.patience_seconds} must be positive")
