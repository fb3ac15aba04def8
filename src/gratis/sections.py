"""The sections of a recipe: plain dataclasses whose defaults are this package's own choices."""

from dataclasses import dataclass, field
from typing import Any, Literal

from gratis.names import parse_attack


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
    training images kept for checks, at most 1,000.  limit: only the first so many training
    images are used, held-out ones among them.  augment: crop-N (zero padding), flip.
    image_size: folder images are resized and centre-cropped to it, in pixels.
    """

    name: str
    root: str | None = None
    batch_size: int = 128
    holdout: float = 0.02
    limit: int | None = None
    augment: tuple[str, ...] = ()
    image_size: int | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.holdout < 0:
            raise ValueError(f"holdout={self.holdout} must be 0 or more")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 image")


@dataclass(frozen=True)
class Model:
    """name: as in gratis.nn.MODELS, timm:NAME or module:function.
    options: the builder's own.  mean, std: normalisation per channel, the model's first layer.
    norm_momentum: of every batch norm; Free replays each minibatch m times, so that at the
    usual 0.1 the last one makes up 1 - 0.9^m of the running statistics.
    norm_groups: batch norms see each batch in so many parts, as on so many devices;
    aux_groups: auxiliary norms, which methods like fast-advprop add (as norm_groups if None).
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm_momentum: float | None = None
    norm_groups: int = 1
    aux_groups: int | None = None

    def __post_init__(self) -> None:
        if min(self.norm_groups, self.aux_groups or 1) < 1 or self.aux_groups == 0:
            raise ValueError(
                f"norm_groups={self.norm_groups}, aux_groups={self.aux_groups}; give 1 or more"
            )


@dataclass(frozen=True)
class Optimizer:
    """decay: whether weight decay takes all parameters or spares norms and biases.
    fallback: with muon, the rate of what is no convolution, in units of learning_rate.
    """

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: Literal["all", "weights"] = "all"
    fallback: float = 1.0


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
    """precision: of weights' products; perturbations and evaluation are always fp32.
    probe_norm: batch-norm behaviour in attacks while training (gratis.prober.Prober).
    ema: decay of averaged weights per update; they are then what is checked and evaluated.
    compile: "auto" times a pass and a probe, compiled and not, before the first update and uses
    the faster; "on" does not ask. Both cost a minute or so, which the log states.
    """

    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    probe_norm: Literal["batch", "tracked", "eval"] = "batch"
    ema: float | None = None
    compile: Literal["off", "auto", "on"] = "off"
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
    the training batch.
    """

    attacks: tuple[str, ...] = ("pgd-50-10",)
    eps: tuple[float, ...] | None = None
    norm: Literal["linf", "l2", "l1"] | None = None
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
