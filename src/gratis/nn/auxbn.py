"""Auxiliary batch norms: a second set of norms that only adversarial images go through.

Source: the auxiliary BatchNorm of AdvProp (Xie 2020), as Mei 2022 uses it: training adversarial
images through norms of their own lets them improve the network instead of shifting its clean
statistics. At test time only the main norms are used.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Branch = Literal["main", "aux"]
MAIN, AUX = "main_norm", "aux_norm"


class BranchedNorm(nn.Module):
    """One batch norm seen as two: `main_norm`, and `aux_norm` where there is one.

    branch: which of them the next forward goes through.
    main_groups, aux_groups: in train mode the batch is cut into so many consecutive parts, each
    normalised by its own statistics, as so many devices would; the running statistics take the
    mean of what the parts would have made of them.
    synced: whether `nn.syncedbn` may put `normalise` in the place of all that.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.main_norm = norm
        self.aux_norm: _BatchNorm | None = None
        self.branch: Branch = "main"
        self.main_groups = self.aux_groups = 1
        self.synced = False
        self.normalise: Callable[[_BatchNorm, Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, ...] -> the same shape."""
        aux = self.branch == "aux"
        norm = self.aux_norm if aux else self.main_norm
        assert norm is not None
        if self.normalise is not None and norm.training:
            return self.normalise(norm, x)
        return _in_groups(norm, x, self.aux_groups if aux else self.main_groups)

    def __getattr__(self, name: str) -> Any:
        """What a network asks of its norm besides the forward (weight, num_features, ...)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(MAIN), name)

    def extra_repr(self) -> str:
        return f"main_groups={self.main_groups}, aux_groups={self.aux_groups}"


def _in_groups(norm: _BatchNorm, x: Tensor, groups: int) -> Tensor:
    if groups == 1 or not norm.training:
        out: Tensor = norm(x)
        return out
    if len(x) < groups:
        raise ValueError(f"{len(x)} images cannot fill {groups} norm groups; use larger batches")
    parts = x.tensor_split(groups)
    if not norm.track_running_stats or norm.running_mean is None:
        return torch.cat([norm(part) for part in parts])
    names = ("running_mean", "running_var", "num_batches_tracked")
    kept = {name: getattr(norm, name) for name in names}
    outs, seen = [], {name: [] for name in names}  # type: ignore[var-annotated]
    try:
        for part in parts:
            # copies: the buffers themselves must not change under a graph that still needs them
            for name in names:
                setattr(norm, name, kept[name].clone())
            outs.append(norm(part))
            for name in names:
                seen[name].append(getattr(norm, name))
    finally:
        for name in names:
            setattr(norm, name, kept[name])
    for name in names:
        kept[name].copy_(torch.stack(seen[name]).to(torch.float64).mean(0))
    return torch.cat(outs)


def add_aux(model: nn.Module) -> nn.Module:
    """Give every batch norm of `model` an auxiliary twin, in place; returns `model`.

    Works for any network made of torch's batch norms or subclasses of them (torchvision, timm,
    yours). The twins start as copies. Until `branch` says otherwise the network computes what it
    did before. Make the optimizer afterwards: the twins' parameters are new.
    Raises ValueError for a network without batch norms, or one that has auxiliary ones already.
    """
    if any(norm.aux_norm is not None for norm in branched(model)):
        raise ValueError("this network has auxiliary norms already")
    for norm in _wrapped(model, "auxiliary norms"):
        norm.aux_norm = copy.deepcopy(norm.main_norm)
    return model


def group_norms(model: nn.Module, main: int = 1, aux: int | None = None) -> nn.Module:
    """Let batch norms see batches in so many groups, as on so many devices; in place.

    aux: groups of the auxiliary norms, as many as `main` unless given.
    Raises ValueError for less than one group, or a network without batch norms.
    """
    aux = main if aux is None else aux
    if main < 1 or aux < 1:
        raise ValueError(f"{main} and {aux} norm groups were asked for; give 1 or more")
    for norm in _wrapped(model, "norm groups"):
        norm.main_groups, norm.aux_groups = main, aux
    return model


def drop_aux(trained: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain network's checkpoint: the state dict without auxiliary norms.

    trained: a network that `add_aux` or `group_norms` changed, or the state dict of one. It is
    left as it is; the result loads into the plain network, whose outputs are then identical.
    """
    state = trained.state_dict() if isinstance(trained, nn.Module) else trained
    if isinstance(trained, nn.Module) and not branched(trained):
        return dict(state)
    named = [(*plain_name(key), value) for key, value in state.items()]
    return {name: value for name, branch, value in named if branch != AUX}


def plain_name(name: str) -> tuple[str, str | None]:
    """(what a tensor is called in the plain network; MAIN, AUX, or None for a shared one)."""
    parts = name.split(".")
    # the last one: a network may have norms of its own that are called so
    place = max((i for i, part in enumerate(parts) if part in (MAIN, AUX)), default=None)
    if place is None:
        return name, None
    return ".".join(parts[:place] + parts[place + 1 :]), parts[place]


@contextmanager
def through(model: nn.Module, branch: Branch) -> Iterator[None]:
    """Within it, the network's norms are those of `branch`.

    Raises ValueError for "aux" where a network has no auxiliary norms.
    """
    norms = branched(model)
    if branch == "aux" and (not norms or any(norm.aux_norm is None for norm in norms)):
        raise ValueError(
            "this method sends adversarial images through auxiliary norms, which the network "
            "lacks: gratis.add_aux(model) before making the optimizer"
        )
    before = [norm.branch for norm in norms]
    for norm in norms:
        norm.branch = branch
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.branch = own


def check_stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """ValueError where the optimizer steps norms but not their auxiliary twins, as one does that
    was made before `add_aux`.
    """
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for norm in branched(model):
        twins = [] if norm.aux_norm is None else norm.aux_norm.parameters()
        for own, twin in zip(norm.main_norm.parameters(), twins, strict=False):
            if twin.requires_grad and id(own) in stepped and id(twin) not in stepped:
                raise ValueError(
                    "the optimizer does not know of the auxiliary norms' parameters, which would "
                    "never be trained; make the optimizer after add_aux(model)"
                )


def equalise_speed(model: nn.Module, main: float, aux: float) -> None:
    """Let every parameter learn at the rate of shared ones (Mei 2022, section 3.2.2).

    main, aux: the share of the update's loss that went through each branch; together 1. The
    gradients of norms, which saw that share alone, are divided by it.
    """
    for norm in branched(model):
        for own, share in ((norm.main_norm, main), (norm.aux_norm, aux)):
            if own is None or not share:
                continue
            for parameter in own.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(share)


def branched(model: nn.Module) -> list[BranchedNorm]:
    """The norms of `model` that `add_aux` or `group_norms` made, each once."""
    return [module for module in model.modules() if isinstance(module, BranchedNorm)]


def _wrapped(model: nn.Module, wanted: str) -> list[BranchedNorm]:
    """Every batch norm of `model` as a BranchedNorm, put in its place where it was none yet."""
    if isinstance(model, _BatchNorm):
        raise ValueError("the network is a batch norm itself; put it into a Sequential")
    made: dict[int, BranchedNorm] = {}
    for parent in list(model.modules()):
        if isinstance(parent, BranchedNorm):
            continue
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                # a norm used at two places stays one norm
                wrapper = made.setdefault(id(child), BranchedNorm(child))
                wrapper.train(child.training)
                setattr(parent, name, wrapper)
    found = branched(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no batch norm layers, which {wanted} need; "
            "networks with layer or group norms cannot be used here"
        )
    return found
