"""Looking at a network without learning: input gradients, and answers alone."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from gratis.budget import Meter
from gratis.casts import PRECISIONS
from gratis.losses import Loss, cross_entropy
from gratis.nn.auxbn import Branch, through
from gratis.nn.batchnorm import untracked_statistics
from gratis.nn.wrapped import bare, runs_compiled

PROBE_NORMS = ("batch", "tracked", "eval")


class Prober:
    """Input gradients of `model`, two thirds of a pass: no weight gradient is computed.

    model: of one that DistributedDataParallel wraps, the network itself is asked: a probe waits for
    no other process.
    norm: how batch-norm layers act in the attack's forward. "batch" uses the batch's own
    statistics and remembers nothing (the default here); "tracked" also moves the running
    statistics (the code of Wong 2020, N-FGSM and GradAlign); "eval" uses the running statistics
    (the code of TRADES, and of DAT for PGD).
    precision: dtype for autocast, None for fp32; the input and its gradient stay fp32.
    meter: where what this costs is counted.
    forward: what is called for the model's answers, the model itself or compiled code of it.
    Raises ValueError for answers that are not [B, K], K > 1, where no `loss` was given.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = cross_entropy,
        *,
        norm: str = "batch",
        precision: torch.dtype | None = None,
        meter: Meter | None = None,
    ) -> None:
        if norm not in PROBE_NORMS:
            raise ValueError(f"norm={norm!r} is none of {', '.join(PROBE_NORMS)}")
        self.model, self.loss, self.norm, self.precision = bare(model), loss, norm, precision
        self.meter = meter if meter is not None else Meter()
        self.forward: Callable[[Tensor], Tensor] = self.model
        self._compiled_by_user = runs_compiled(self.model)

    def __call__(
        self, x: Tensor, y: Tensor, loss: Loss | None = None, norm: Branch = "main"
    ) -> Tensor:
        self.meter.probes += len(x)
        x = x.detach().requires_grad_()
        with self.as_probed(norm), torch.enable_grad():
            with self._autocast(x):
                logits = self.forward(x)
            if self.loss is cross_entropy:
                _check_classes(logits)
            # a mean would shrink each image's gradient with the batch; a sum is per image
            total = (loss or self.loss)(logits, y).sum()
            # fp16 flushes gradients below 6e-8 to zero; only their direction is used
            scale = 1024.0 if self.precision == torch.float16 else 1.0
            (grad,) = torch.autograd.grad(total * scale, x)
        return grad

    def logits(self, x: Tensor) -> Tensor:
        """The model's answers [B, K] in fp32, without gradient: a third of a pass."""
        self.meter.forwards += len(x)
        # a cast made without gradient knows nothing of its weight, and no pass may be given it;
        # PyTorch 2.15 sees to that itself
        with self.as_probed(), torch.no_grad(), self._autocast(x, keep_casts=False):
            logits: Tensor = self.forward(x)
        return logits.float()

    @contextmanager
    def as_probed(self, branch: Branch = "main") -> Iterator[None]:
        """The model's batch-norm layers as `norm` says, put back on leaving."""
        with (
            through(self.model, branch),
            _norm_mode(self.model, self.norm),
            _without_weight_gradients(self.model) if self._is_compiled else nullcontext(),
        ):
            yield

    @property
    def _is_compiled(self) -> bool:
        return self.forward is not self.model or self._compiled_by_user

    def _autocast(self, x: Tensor, keep_casts: bool = True) -> AbstractContextManager[None]:
        wanted = self.precision is not None
        return torch.autocast(
            x.device.type, self.precision, enabled=wanted, cache_enabled=keep_casts
        )


def precision_named(precision: str) -> torch.dtype | None:
    """The dtype for autocast, None for fp32; ValueError for a name that is none."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _check_classes(logits: object) -> None:
    """ValueError unless they are [B, K] with K > 1: over one class the cross entropy is flat, and
    climbing it goes nowhere.
    """
    if not isinstance(logits, Tensor):
        found = f"a {type(logits).__name__}"
    elif logits.dim() != 2 or logits.shape[1] < 2:
        found = f"shaped {tuple(logits.shape)}"
    else:
        return
    raise ValueError(
        f"the model's answers are {found}; the cross entropy that probes climb needs "
        "[images, classes] with two classes or more: give the loss that you learn from, one "
        "number an image, as in method.batches(loader, model, loss=lambda z, y: "
        'F.binary_cross_entropy_with_logits(z.flatten(), y.float(), reduction="none"))'
    )


@contextmanager
def _without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient; compiled code would compute those that do, asked or not,
    where the uncompiled backward leaves them out.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def _norm_mode(model: nn.Module, norm: str) -> Iterator[None]:
    """The model's batch-norm behaviour while it is probed, put back on leaving."""
    if norm == "batch":
        with untracked_statistics(model):
            yield
    elif norm == "eval":
        # mode by mode: a layer that the user froze in eval mode stays frozen afterwards
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
    else:
        yield
