"""Networks inside PyTorch's wrappers: DistributedDataParallel and torch.compile."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def bare(model: nn.Module) -> nn.Module:
    """The network that a DistributedDataParallel wraps, which waits for no other process; any
    other as it is.
    """
    wrapper = getattr(model, "_orig_mod", model)  # it may have been compiled as a whole
    inside: nn.Module = wrapper.module if isinstance(wrapper, DistributedDataParallel) else model
    return inside


def check_bare(model: nn.Module) -> None:
    """ValueError for what `bare` would have to unwrap."""
    if bare(model) is not model:
        raise ValueError(
            "the model is a DistributedDataParallel, and Learner exchanges gradients itself; give "
            "the bare network, model.module"
        )


def runs_compiled(model: nn.Module) -> bool:
    """Whether torch.compile(...) or .compile() was called on the network or on a part of it."""
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in model.modules()
    )
