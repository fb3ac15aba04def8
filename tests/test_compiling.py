"""Whether compiled code is used: decided once, by measuring, and kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gratis import Learner, Linf, fgsm_rs, train
from gratis.compiling import choose, decide
from gratis.passes import Batch
from gratis.run import Run
from tests.recipes import tiny

BALL = Linf(8 / 255)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def learner(precision: str = "fp32") -> Learner:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Learner(model, optimizer, precision=precision, seed=0)


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(8, 3, 8, 8), torch.arange(8)


class Compiler:
    """Stands in for torch.compile: calls the network as it is, and remembers how."""

    def __init__(self, *, error: str | None = None) -> None:
        self.compiled = self.calls = self.with_weight_gradients = 0
        self.error = error

    def __call__(self, model: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        self.compiled += 1

        def forward(x: Tensor) -> Tensor:
            if self.error:
                raise RuntimeError(self.error)
            self.calls += 1
            self.with_weight_gradients += any(p.requires_grad for p in model.parameters())
            return model(x)  # type: ignore[no-any-return]

        return forward


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    stand_in = Compiler()
    monkeypatch.setattr(torch, "compile", stand_in)
    return stand_in


def test_compiled_probes_ask_for_no_weight_gradient(compiler: Compiler) -> None:
    compiled = learner()
    compiled.compile()
    compiled.fit(fgsm_rs(BALL), Batch(*batch()))
    assert compiler.calls == 2, "one probe and one pass"
    assert compiler.with_weight_gradients == 1, "the pass alone"


def test_deciding_leaves_the_network_alone(compiler: Compiler) -> None:
    judged = learner()
    before = {k: v.clone() for k, v in judged.model.state_dict().items()}
    decision = decide(judged, *batch())
    assert decision.eager is not None
    assert decision.compiled is not None
    assert decision.seconds > 0
    assert all(torch.equal(v, before[k]) for k, v in judged.model.state_dict().items())
    assert all(p.grad is None for p in judged.model.parameters())
    assert judged.spent.thirds == 0


def test_a_compiler_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(error="no C++ compiler found\nand so on"))
    decision = decide(learner(), *batch())
    assert not decision.used
    assert decision.reason == "the compiler failed: RuntimeError: no C++ compiler found"


@pytest.mark.parametrize("used", [True, False])
def test_an_earlier_decision_is_kept(compiler: Compiler, used: bool) -> None:
    events: list[dict[str, Any]] = []
    choose(
        "auto",
        learner(),
        batch=lambda: pytest.fail("it was tried again"),
        records=[{"kind": "step"}, {"kind": "compile", "used": used}],
        record=lambda kind, **values: events.append({"kind": kind, **values}),
    )
    assert compiler.compiled == used
    assert not events


def test_the_decision_stands_in_the_log_once(tmp_path: Path, compiler: Compiler) -> None:
    recipe = tiny("fgsm-rs", "engine.compile=auto")
    train.run(recipe, tmp_path / "run")
    train.run(recipe, tmp_path / "run", resume=True)
    events = [r for r in Run.open(tmp_path / "run").log() if r["kind"] == "compile"]
    assert len(events) == 1
    assert set(events[0]) >= {"used", "reason", "eager", "compiled", "seconds"}


def test_off_never_compiles(tmp_path: Path, compiler: Compiler) -> None:
    train.run(tiny(), tmp_path / "run")
    assert compiler.compiled == 0


def test_a_method_that_watches_a_layer_is_not_compiled(tmp_path: Path) -> None:
    for mode in ("auto", "on"):
        with pytest.raises(ValueError, match=r"engine\.compile=.*: yopo watches.*leave it off"):
            train.run(tiny("yopo-2-2", f"engine.compile={mode}"), tmp_path / mode)


@pytest.mark.slow
def test_compiled_code_learns_what_the_network_as_it_is_learns() -> None:
    plain, compiled = learner(), learner()
    compiled.compile()
    for x, y in [batch() for _ in range(3)]:
        for each in (plain, compiled):
            each.fit(fgsm_rs(BALL), Batch(x, y))
    for ours, theirs in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        # fused kernels add in another order, and a sign may differ where a gradient is near 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_every_variant_of_three_phases_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes of batch, pass and probe, in each: more than PyTorch compiles unless told to."""
    compiled = 0

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    torch._dynamo.reset()
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: real(model, **options, backend=counting)
    )
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    phased = Learner(model, torch.optim.SGD(model.parameters(), 0.1), seed=0)
    phased.compile()
    for side in (6, 8, 10):
        for count in (8, 5):
            phased.fit(fgsm_rs(BALL), Batch(torch.rand(count, 3, side, side), torch.arange(count)))
    assert compiled == 12
