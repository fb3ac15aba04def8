"""Networks that PyTorch has wrapped: DistributedDataParallel, and compiled code."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gratis import Learner, Linf, attack, fgsm_rs, robust_accuracy
from gratis.nn.wrapped import bare, runs_compiled
from gratis.prober import Prober
from tests.small_net import EPS, sgd, small_net, some_batches
from tests.two_processes import needs_gloo

# --- DistributedDataParallel


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """One process's; its forward, in which it would wait for the others, may not run."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(small_net())
        monkeypatch.setattr(wrapped, "forward", lambda *_: pytest.fail("others were waited for"))
        yield wrapped
    finally:
        torch.distributed.destroy_process_group()


@needs_gloo
def test_looking_at_a_network_waits_for_no_other_process(parallel: nn.Module) -> None:
    x, y = some_batches()[0]
    net, ball = bare(parallel), Linf(EPS)
    assert torch.equal(Prober(parallel)(x, y), Prober(net)(x, y))
    for p, _ in fgsm_rs(ball).batches([(x, y)], parallel, seed=0):
        assert not torch.equal(p, x)
    ours = robust_accuracy(parallel, [(x, y)], ["pgd-3"], ball=ball)
    assert torch.equal(ours.robust, robust_accuracy(net, [(x, y)], ["pgd-3"], ball=ball).robust)
    points = attack(parallel, x, y, "pgd-3", ball=ball)
    assert torch.equal(points, attack(net, x, y, "pgd-3", ball=ball))


@needs_gloo
@pytest.mark.parametrize("compiled", [False, True])
def test_the_network_inside_is_found(parallel: nn.Module, compiled: bool) -> None:
    model: Any = torch.compile(parallel) if compiled else parallel
    assert bare(model) is parallel.module
    with pytest.raises(ValueError, match=r"give the bare network, model\.module"):
        Learner(model, sgd(model))


def test_other_networks_are_bare() -> None:
    net = small_net()
    compiled: Any = torch.compile(net)
    assert bare(net) is net
    assert bare(compiled) is compiled


# --- compiled code


def in_place(net: nn.Module, backend: Any) -> nn.Module:
    net.compile(backend=backend)
    return net


def a_part(net: nn.Module, backend: Any) -> nn.Module:
    return nn.Sequential(nn.Identity(), torch.compile(net, backend=backend))


def whole(net: nn.Module, backend: Any) -> Any:
    return torch.compile(net, backend=backend)


@pytest.mark.parametrize("way", [whole, in_place, a_part])
def test_probes_of_compiled_code_ask_for_no_weight_gradient(
    way: Callable[[nn.Module, Any], nn.Module],
) -> None:
    """A compiler is told which inputs of its graph want a gradient, and computes what it is."""
    wanted: list[int] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        tensors = [value for value in inputs if isinstance(value, torch.nn.Parameter)]
        wanted.append(sum(tensor.requires_grad for tensor in tensors))
        return graph.forward

    torch._dynamo.reset()
    x, y = some_batches()[0]
    model = way(small_net(), backend)
    assert runs_compiled(model)
    gradient = Prober(model)(x, y)
    assert wanted == [0]
    model(x)
    assert wanted[1:] == [5]
    torch.testing.assert_close(gradient, Prober(small_net())(x, y))
    assert all(p.requires_grad for p in model.parameters())
