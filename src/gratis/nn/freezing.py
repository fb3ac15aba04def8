"""Parts of a network that training leaves as they are, and the head that it always may replace."""

from collections.abc import Sequence
from types import MethodType

from torch import nn

from gratis.nn.detector import CLASSES, Detector
from gratis.nn.normalize import Normalize

ALL_BUT_HEAD = "all-but-head"


def behind_normalize(model: nn.Module) -> nn.Module:
    """The network itself, where `build_model` has put a `Normalize` layer before it."""
    first = getattr(model, "normalize", None)
    wrapped = isinstance(model, nn.Sequential) and isinstance(first, Normalize)
    return model.get_submodule("net") if wrapped else model


def head_of(net: nn.Module, classes: int) -> str:
    """The name of the layer that answers: the last one with an output for each class; of a
    detector the one that says which class.

    Raises ValueError where no linear layer or convolution has so many outputs.
    """
    if isinstance(net, Detector):
        return CLASSES
    found: list[str] = [
        name
        for name, module in net.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == classes)
    ]
    if not found:
        raise ValueError(
            f"{type(net).__name__} has no linear layer with {classes} outputs, one for each "
            "class, so that nothing can be taken for its head"
        )
    return found[-1]


def freeze(net: nn.Module, names: Sequence[str], classes: int) -> None:
    """Let no training change what is named: parameters, and norms' running statistics.

    names: of modules, with all that is below them, or of parameters; or ALL_BUT_HEAD. Frozen
    modules stay in eval mode whatever `train` says: norms use their running statistics and
    dropout is off, so that what is frozen computes what it did where it comes from.
    Raises ValueError for a name that is neither, or where nothing would be left to train.

    Differs from the code of Salman 2020, which only takes the parameters from the optimizer:
    norms go on using and moving batch statistics there.
    """
    modules, parameters = dict(net.named_modules()), dict(net.named_parameters())
    if ALL_BUT_HEAD in names:
        head = head_of(net, classes)
        names = [
            name
            for name in [*modules, *parameters]
            if name and not _is_below(name, head) and not _is_below(head, name)
        ]
    for name in names:
        if not name or (name not in modules and name not in parameters):
            top = ", ".join(child for child, _ in net.named_children())
            raise ValueError(
                f"model.freeze: the network has no module or parameter {name!r}; it consists of "
                f"{top}, and what is below them; {ALL_BUT_HEAD} names all but its last layer"
            )
        if name in parameters:
            parameters[name].requires_grad_(False)
            continue
        for module in modules[name].modules():
            module.training = False
            module.train = MethodType(_stay, module)
        modules[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError("model.freeze: nothing would be left to train; freeze less")


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """What is frozen answers so to `train` and `eval`."""
    return module


def _is_below(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")
