"""The time of an update on several machines, as arithmetic: nothing is run, torch is not needed.

Data-parallel training in step: each GPU works through its part of the batch, then gradients are
averaged over all of them. Of the cost models for collectives (Thakur 2005, "Optimization of
collective communication operations in MPICH") this is the one of rings: K workers average
n bytes in 2(K-1) rounds, each sending 2(K-1)/K n bytes; gathering everyone's n bytes takes K-1
rounds and (K-1) n bytes. That a coded gradient cannot be summed on the way, so that one-sided
coding has to gather, is what makes it dearer than fp32 from 64/bits workers on.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

Exchange = Literal["all-reduce", "one-sided", "two-sided"]
"""all-reduce: sums travel, in fp32 or 16 bits.  one-sided: everyone's codes go to everyone.
two-sided: each worker gets the codes of its part, averages, and its codes go to everyone."""

BYTES = 4  # of a number in fp32
CODED = ("one-sided", "two-sided")
HEADERS = 1448 / 1538  # what Ethernet, IP and TCP leave of a line with packets of 1500 bytes


@dataclass(frozen=True)
class Link:
    """What a worker can send while it receives as much.

    bits_per_second: as printed on the box.  share: of it that gradients get, in (0, 1].
    latency: seconds of each round, however little is sent in it.
    """

    bits_per_second: float
    share: float = 1.0
    latency: float = 0.0

    def __post_init__(self) -> None:
        if self.bits_per_second <= 0 or not 0 < self.share <= 1 or self.latency < 0:
            raise ValueError(
                f"{self}: give bits_per_second above 0, share in (0, 1] and latency of 0 or more"
            )

    def seconds(self, count: float, rounds: int) -> float:
        """Of sending `count` bytes in `rounds` rounds."""
        return 8 * count / (self.share * self.bits_per_second) + rounds * self.latency


INSIDE = Link(80e9)  # PCI Express 3.0 x16 in practice; of a line this fast little depends


@dataclass(frozen=True)
class Gradient:
    """What is averaged once an update: `parameters` numbers of `bits` bits each.

    tensors: coded, each has a norm in fp32 of its own.  coding: seconds an update takes for
    making and reading codes.  Raises ValueError where codes of fewer than 16 bits are summed.
    """

    parameters: int
    bits: int = 32
    exchange: Exchange = "all-reduce"
    tensors: int = 0
    coding: float = 0.0

    def __post_init__(self) -> None:
        if self.exchange not in get_args(Exchange):
            raise ValueError(f"exchange={self.exchange!r}; choose from {get_args(Exchange)}")
        if self.parameters < 1 or not 1 <= self.bits <= 32 or min(self.tensors, self.coding) < 0:
            raise ValueError(
                f"{self}: give at least 1 parameter, 1 to 32 bits, 0 or more tensors and seconds"
            )
        if self.exchange == "all-reduce" and self.bits < 16:
            raise ValueError(
                f"codes of {self.bits} bits cannot be summed on their way; say one- or two-sided"
            )

    @property
    def bytes(self) -> float:
        norms = BYTES * self.tensors if self.exchange in CODED else 0
        return self.parameters * self.bits / 8 + norms

    def sent(self, workers: int) -> float:
        """Bytes that each of `workers` sends, and receives, for one average."""
        if self.exchange == "one-sided":
            return (workers - 1) * self.bytes
        return 2 * (workers - 1) / workers * self.bytes

    def rounds(self, workers: int) -> int:
        return (workers - 1) * (1 if self.exchange == "one-sided" else 2)


@dataclass(frozen=True)
class Cluster:
    """`machines` of `gpus` each; `network` joins the machines, `inside` the GPUs of one."""

    machines: int
    gpus: int
    network: Link
    inside: Link

    def __post_init__(self) -> None:
        if min(self.machines, self.gpus) < 1:
            raise ValueError(
                f"{self.machines} machines of {self.gpus} GPUs; give 1 or more of each"
            )

    def exchange(self, gradient: Gradient) -> float:
        """Seconds of one average: in fp32 inside each machine, then as `gradient` between them.

        Sums inside a machine first, so that its line carries one gradient and not one for each
        GPU; the last step inside hands the average back.
        """
        summed = Gradient(gradient.parameters)
        within = self.inside.seconds(summed.sent(self.gpus), summed.rounds(self.gpus))
        between = self.network.seconds(gradient.sent(self.machines), gradient.rounds(self.machines))
        return within + between


@dataclass(frozen=True)
class Compute:
    """Seconds a GPU takes for an image, attack included, and for an update whatever its size.

    backward: the last backward's share of seconds_per_image, in which gradients can already
    leave. An attack's probes make no gradients that travel: two thirds of a pass of the cost in
    passes, so 2/3 for natural training and (2/3)/(1 + 7 * 2/3) for PGD-7.
    """

    seconds_per_image: float
    seconds_per_update: float = 0.0
    backward: float = 2 / 3

    def __post_init__(self) -> None:
        if self.seconds_per_image < 0 or self.seconds_per_update < 0 or not 0 <= self.backward <= 1:
            raise ValueError(f"{self}: give seconds of 0 or more, and backward in [0, 1]")


@dataclass(frozen=True)
class Update:
    """Seconds of an update's parts; `hidden` of the exchange passed during the backward."""

    compute: float
    coding: float
    exchange: float
    hidden: float

    @property
    def seconds(self) -> float:
        return self.compute + self.coding + self.exchange - self.hidden


def update(
    compute: Compute, gradient: Gradient, cluster: Cluster, *, batch: float, overlap: float = 0.0
) -> Update:
    """An update of `batch` images in all.

    overlap: of what could be hidden behind the last backward, the share that is, in [0, 1].
    0: the exchange begins when the backward has ended. 1: it begins with the backward; what
    lasts longer than that is waited for. DistributedDataParallel's buckets lie between.
    """
    if batch <= 0 or not 0 <= overlap <= 1:
        raise ValueError(
            f"batch={batch}, overlap={overlap}; give a batch above 0, overlap in [0, 1]"
        )
    images = compute.seconds_per_image * batch / (cluster.machines * cluster.gpus)
    exchange = cluster.exchange(gradient)
    coding = gradient.coding if cluster.machines > 1 else 0.0
    hidden = overlap * min(exchange, compute.backward * images)
    return Update(images + compute.seconds_per_update, coding, exchange, hidden)


def seconds_per_image(
    seconds: float,
    gradient: Gradient,
    cluster: Cluster,
    *,
    batch: float,
    backward: float,
    overlap: float = 0.0,
) -> float:
    """What `Compute.seconds_per_image` must be for an update to take `seconds`.

    Raises ValueError where the exchange alone takes longer.
    """
    exchange = cluster.exchange(gradient)
    coding = gradient.coding if cluster.machines > 1 else 0.0
    left = seconds - coding - exchange
    if left <= 0:
        raise ValueError(
            f"exchange and coding alone take {coding + exchange:.3g} s of an update's {seconds:.3g}"
        )
    # the larger of two lines: the backward shorter than the exchange, and longer
    images = left + overlap * exchange
    if overlap * backward < 1:
        images = min(images, left / (1 - overlap * backward))
    return images * cluster.machines * cluster.gpus / batch


@dataclass(frozen=True)
class Job:
    """A training run, and the hours that one machine of `gpus` takes for it.

    images: of an epoch.  cost: passes an image, attack included, where a probe is 2/3.
    tensors: that the network's `parameters` are in. Raises ValueError unless all are above 0.
    """

    hours: float
    gpus: int
    images: int
    epochs: float
    cost: float
    parameters: int
    tensors: int

    def __post_init__(self) -> None:
        if min(vars(self).values()) <= 0:
            raise ValueError(f"{self}: give numbers above 0")


@dataclass(frozen=True)
class Case:
    """A job on `machines` of `gpus`, with as many epochs, and what is assumed of it.

    per_machine: batch of a machine.  alone: batch of the one machine whose hours are known.
    message: seconds a message takes however short; each round sends `messages` of them.
    slower: an image's compute, relative to that machine's.
    """

    job: Job
    machines: int
    gpus: int
    per_machine: float
    alone: float
    gigabits: float
    messages: int
    bits: int = 32
    exchange: Exchange = "all-reduce"
    overlap: float = 0.0
    share: float = HEADERS
    message: float = 50e-6
    slower: float = 1.0

    def gradient(self) -> Gradient:
        return Gradient(self.job.parameters, self.bits, self.exchange, self.job.tensors)

    def cluster(self) -> Cluster:
        line = Link(self.gigabits * 1e9, self.share, self.messages * self.message)
        return Cluster(self.machines, self.gpus, line, INSIDE)

    def compute(self) -> Compute:
        """Calibrated so that one machine needs the hours that are known.

        Raises ValueError where its exchange alone takes longer.
        """
        updates = self.job.images * self.job.epochs / self.alone
        backward = 2 / 3 / self.job.cost  # only the last pass's gradients can leave while made
        image = seconds_per_image(
            3600 * self.job.hours / updates,
            self.gradient(),
            replace(self.cluster(), machines=1, gpus=self.job.gpus),
            batch=self.alone,
            backward=backward,
            overlap=self.overlap,
        )
        return Compute(self.slower * image, backward=backward)

    def hours(self) -> tuple[float, float]:
        """(all, of which waiting for the exchange)."""
        batch = self.per_machine * self.machines
        parts = update(
            self.compute(), self.gradient(), self.cluster(), batch=batch, overlap=self.overlap
        )
        updates = self.job.images * self.job.epochs / batch  # as many epochs, so fewer updates
        return updates * parts.seconds / 3600, updates * (parts.exchange - parts.hidden) / 3600

    def speed_up(self) -> float:
        """Over the one machine."""
        return self.job.hours / self.hours()[0]

    def in_words(self) -> str:
        """What is given and what is assumed, without the layout."""
        job = self.job
        slower = f"; an image {self.slower:g} times as dear" if self.slower != 1 else ""
        return (
            f"one machine of {job.gpus} GPUs takes {job.hours:.1f} h for {job.epochs:g} "
            f"epochs of {job.images:,} images in batches of {self.alone:g}, {job.cost:.2f} passes "
            f"an image; assumed are {self.per_machine:g} images a machine; gradients of "
            f"{job.parameters:,} numbers, {self.bits} bits each, {self.exchange}, overlap "
            f"{self.overlap:g} with the last backward; {self.gigabits:g} Gbit/s between machines, "
            f"{100 * self.share:.0f} % of it for gradients, in {self.messages} messages a round "
            f"that cost {1e6 * self.message:g} microseconds each besides; fp32 over "
            f"{INSIDE.bits_per_second / 1e9:g} Gbit/s inside a machine{slower}"
        )
