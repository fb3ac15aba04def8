"""What is trained, and on what: data, network, task."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class About:
    """What a reader wants to know before running: the source, and what came out where."""

    title: str = ""
    paper: str = ""
    expected: str = ""
    hardware: str = ""


@dataclass(frozen=True)
class Unlabelled:
    """How images without labels are used: those that `labels` leaves without, and more of them.

    name, root: another source of images, as in Data; its labels are not used.  limit: only so
    many of them, by the seed.  share: the part of every batch that is drawn from images without
    labels (Carmon 2019 draws half); 0 for none.  pseudo: a run directory whose model labels them
    once, before training; without one the method must be able to learn from images alone.
    """

    name: str | None = None
    root: str | None = None
    limit: int | None = None
    share: float = 0.5
    pseudo: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share={self.share} must be 0 or more, and below 1")
        if self.name is None and (self.root is not None or self.limit is not None):
            raise ValueError("root and limit are those of another source: give its name as well")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 image")


@dataclass(frozen=True)
class Data:
    """name: digits, mnist, fashion-mnist, cifar10, cifar100, folder, coco, or module:function.
    root: where the files lie; else $GRATIS_DATA.  holdout: share (below 1) or number of the
    training images kept for checks, at most 1,000.  limit: only the first so many training
    images are used, held-out ones among them.  augment: crop-N (zero padding), flip.
    image_size: what the network learns from, in pixels; folder images are resized and
    centre-cropped to it.  test_size: what it is asked about, image_size unless given.
    test_resize: the shorter side that images are resized to before their centre of test_size is
    cut out; test_size unless given, 0 to leave them as large as they are.
    stored: images of a folder, and training images of coco, are not held in memory but streamed:
    decoded once, their shorter side (coco: the longer one) at most so many pixels, and kept on
    disk; or "files", decoded each time.  cache: the directory where they are kept; .gratis-cache
    below the root unless given.  workers: threads that read; one for each core unless given.
    test_split: "train" where nothing but the training images is there to be judged on, which
    shows that a model can learn them and no more.
    labels: only so many training labels are kept, equally many of each class, by the seed;
    held-out images are among them.  unlabelled: how images without labels are used.
    """

    name: str
    root: str | None = None
    batch_size: int = 128
    holdout: float = 0.02
    limit: int | None = None
    augment: tuple[str, ...] = ()
    image_size: int | None = None
    test_size: int | None = None
    test_resize: int | None = None
    stored: int | Literal["files"] | None = None
    cache: str | None = None
    workers: int | None = None
    drop_last: bool = False
    test_split: Literal["test", "train"] = "test"
    labels: int | None = None
    unlabelled: Unlabelled | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.holdout < 0:
            raise ValueError(f"holdout={self.holdout} must be 0 or more")
        if self.labels is not None and self.labels < 1:
            raise ValueError(f"labels={self.labels} must be at least 1")
        if self.unlabelled is not None and self.labels is None and self.unlabelled.name is None:
            raise ValueError(
                "unlabelled: every image has its label; give labels (how many are kept) or the "
                "name of another source of images"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 image")
        for key in ("image_size", "test_size", "workers"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if self.test_resize is not None and self.test_resize < 0:
            raise ValueError(f"test_resize={self.test_resize} must be 0 or more pixels")
        self._check_stored()

    def _check_stored(self) -> None:
        if self.stored is None:
            if self.cache is not None or self.workers is not None:
                raise ValueError("cache and workers are for streamed images: give stored as well")
            return
        if isinstance(self.stored, int) and self.stored < 1:
            raise ValueError(f"stored={self.stored} must be at least 1 pixel, or files")
        if self.name not in ("folder", "coco") or self.image_size is None:
            raise ValueError(
                f"stored={self.stored} streams images of name=folder or coco, made image_size; "
                "give both, or stored=null"
            )
        if self.labels is not None or self.unlabelled is not None:
            raise ValueError(
                "labels and unlabelled are for images in memory; leave them or stored out"
            )
        if self.name == "folder" and self.test_split == "train":
            raise ValueError(
                "test_split=train judges on training images in memory, which stored streams from "
                "disk; leave one of them out"
            )


@dataclass(frozen=True)
class Model:
    """name: as in gratis.nn.MODELS, timm:NAME or module:function.
    options: the builder's own.  mean, std: normalisation per channel, the model's first layer.
    norm_momentum: of every batch norm; Free replays each minibatch m times, so that at the
    usual 0.1 the last one makes up 1 - 0.9^m of the running statistics.
    norm_groups: batch norms see each batch in so many parts, as on so many devices;
    aux_groups: auxiliary norms, which methods like fast-advprop add (as norm_groups if None); of
        the whole batch, so that a process's part has its share of them, one at least.
    norms: whether each process's norms see its own images, or, in what is learned from, those of
    all processes (attacks always see their own).
    start: a run directory or a file of weights to begin with, in place of random ones; a head
    for another number of classes stays random.  new_head: so does one that would fit.
    freeze: what training leaves as it is, statistics of norms too: names of modules or of
    parameters, or `all-but-head`.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm_momentum: float | None = None
    norm_groups: int = 1
    aux_groups: int | None = None
    norms: Literal["local", "synced"] = "local"
    start: str | None = None
    new_head: bool = False
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.norms == "synced" and (self.norm_groups, self.aux_groups or 1) != (1, 1):
            raise ValueError(
                "norms=synced sees a batch of all processes as one; leave norm_groups and "
                "aux_groups out"
            )
        if self.new_head and self.start is None:
            raise ValueError("new_head=True: without a start the whole network is new")
        if min(self.norm_groups, self.aux_groups or 1) < 1 or self.aux_groups == 0:
            raise ValueError(
                f"norm_groups={self.norm_groups}, aux_groups={self.aux_groups}; give 1 or more"
            )


@dataclass(frozen=True)
class Task:
    """name: one class an image, or boxes.
    label_smoothing: the share of each label that is spread over all classes (Szegedy 2016,
    section 7) in the loss that is learned from; attacks climb the plain one. Losses that methods
    bring along (TRADES, GradAlign's penalty, mixed images) are not smoothed.
    attack: for detection, the part of the loss that attacks climb while training: the sum, that
    of the classes, that of the boxes.
    """

    name: Literal["classification", "detection"] = "classification"
    label_smoothing: float = 0.0
    attack: Literal["sum", "class", "box"] = "sum"

    def __post_init__(self) -> None:
        if self.name == "detection" and self.label_smoothing:
            raise ValueError("label_smoothing is for classification; leave it out for detection")
        if self.name == "classification" and self.attack != "sum":
            raise ValueError(
                f"attack={self.attack} is for detection, whose loss has parts; leave it out"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} must be a share of the label: 0 or more, "
                "below 1"
            )
