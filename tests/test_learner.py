"""What `Learner` asks of a model, an optimizer, a schedule and images before it learns."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gratis import AdvProp, FastAdvProp, GradAlign, Learner, Linf, Natural, Trades, Yopo, add_aux
from gratis.balls import Ball
from gratis.comm_hooks import exchange_named
from gratis.nn import build_model
from gratis.optim import build_optimizer
from gratis.optim.groups import Schedule
from gratis.passes import Batch, Method
from tests.small_net import EPS, sgd, small_net, some_batches, weights

BALL = Linf(EPS)


def learner(model: nn.Module | None = None, **how: Any) -> Learner:
    model = model or small_net()
    return Learner(model, sgd(model), **how)


# --- images


@pytest.mark.parametrize(
    "build",
    [FastAdvProp, AdvProp, Trades, GradAlign, Yopo],
    ids=["fast-advprop", "advprop", "trades", "gradalign", "yopo"],
)
def test_normalised_images_are_refused(build: Callable[[Ball], Method]) -> None:
    """They would be clamped into [0, 1], and the network would learn from what is left of them."""
    method, (x, y) = build(BALL), some_batches()[0]
    model = add_aux(small_net()) if method.auxiliary else small_net()
    engine, before = learner(model), weights(model)
    for _ in range(2):  # a refusal is no look that counts
        with pytest.raises(ValueError, match="move normalisation into the model"):
            engine.fit(method, Batch((x - 0.5) / 0.25, y))
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    engine.fit(method, Batch(x, y))


def test_natural_training_takes_any_images() -> None:
    x, y = some_batches()[0]
    assert learner().fit(Natural(), Batch((x - 0.5) / 0.25, y)).images == [8]


def test_each_method_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Ball] = []
    monkeypatch.setattr(Linf, "check", lambda ball, x: seen.append(ball))
    engine, first, second = learner(), Trades(Linf(0.1), steps=1), Trades(Linf(0.2), steps=1)
    for method in (first, first, second, second):
        engine.fit(method, Batch(*some_batches()[0]))
    assert seen == [first.ball, second.ball]


def test_images_and_labels_come_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one device here: what is asked of the tensors is looked at."""
    asked: list[object] = []
    to = Tensor.to

    def noted(self: Tensor, *where: Any, **named: Any) -> Tensor:
        asked.append((self.shape, *where))
        return to(self, *where, **named)

    engine, (x, y) = learner(), some_batches()[0]
    monkeypatch.setattr(Tensor, "to", noted)
    engine.placed(Batch(x, y))
    assert asked == [(x.shape, engine.device), (y.shape, engine.device)]


# --- the network's mode


def test_a_frozen_norm_stays_frozen() -> None:
    model = small_net().train()
    model[1].eval()
    before = weights(model)
    learner(model).fit(Natural(), Batch(*some_batches()[0]))
    assert not model[1].training
    assert torch.equal(model[1].running_mean, before["1.running_mean"])


def test_a_network_in_eval_mode_is_put_into_train_mode() -> None:
    model = small_net().eval()
    learner(model).fit(Natural(), Batch(*some_batches()[0]))
    assert all(module.training for module in model.modules())


# --- the optimizer


def test_an_optimizer_that_lacks_the_auxiliary_norms_is_refused() -> None:
    model = small_net()
    optimizer = sgd(model)
    engine = Learner(add_aux(model), optimizer)
    with pytest.raises(ValueError, match=r"make the optimizer after add_aux\(model\)"):
        engine.fit(FastAdvProp(BALL), Batch(*some_batches()[0]))
    engine.fit(Trades(BALL, steps=1), Batch(*some_batches()[0]))


@pytest.mark.parametrize("frozen", [True, False])
def test_auxiliary_norms_that_are_left_out_on_purpose_are_no_mistake(frozen: bool) -> None:
    """Frozen twins, or norms none of which are trained, as where the last layer alone is."""
    model = add_aux(small_net())
    if frozen:
        model[1].aux_norm.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
    else:
        trained = list(model[5].parameters())
    engine = Learner(model, torch.optim.SGD(trained, 0.1))
    assert len(engine.fit(FastAdvProp(BALL), Batch(*some_batches()[0])).losses) == 1


def test_groups_of_different_rates_go_with_no_schedule() -> None:
    model = small_net()
    parts = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[5].parameters()}]
    optimizer = torch.optim.SGD(parts, 0.1)
    Learner(model, optimizer)
    with pytest.raises(ValueError, match=r"rates 0\.01, 0\.1, .* would set them all alike"):
        Learner(model, optimizer, schedule=lambda update, begun: {"lr": 0.1})


@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon", "lars", "lamb"])
def test_the_optimizers_here_go_with_a_schedule(name: str, decay: str) -> None:
    model = build_model("small-conv", classes=4, channels=1, image_size=8)
    optimizer = build_optimizer(
        model, name, learning_rate=0.1, decay=decay, fallback=0.5, layerwise="weights"
    )
    Learner(model, optimizer, schedule=lambda update, begun: {"lr": 0.1})


def test_a_schedule_that_gives_a_number_is_refused() -> None:
    number: Any = lambda update, begun: 0.1  # noqa: E731
    engine = learner(schedule=number)
    for ask in (lambda: engine.rate(0), lambda: engine.fit(Natural(), Batch(*some_batches()[0]))):
        with pytest.raises(ValueError, match=r"gave a float; a mapping .*\"lr\""):
            ask()


def test_a_schedule_sets_every_group() -> None:
    model = small_net()
    parts = [{"params": model[0].parameters()}, {"params": model[5].parameters()}]
    rates: Schedule = lambda update, begun: {"lr": 0.5 / (1 + update)}  # noqa: E731
    engine = Learner(model, torch.optim.SGD(parts, 0.1), schedule=rates)
    for rate in (0.5, 0.25):
        engine.fit(Natural(), Batch(*some_batches()[0]))
        assert [group["lr"] for group in engine.optimizer.param_groups] == [rate, rate]


# --- pixels of another range


def wide(ball: Ball) -> Ball:
    return Linf(255 * ball.eps, low=0.0, high=255.0)


def test_gradalign_is_as_strong_in_grey_levels() -> None:
    for eps in (4 / 255, 8 / 255, 32 / 255):
        share, levels = GradAlign(Linf(eps)), GradAlign(wide(Linf(eps)))
        assert levels.resolved_strength == pytest.approx(share.resolved_strength)


def test_trades_starts_as_far_away_in_grey_levels() -> None:
    class Still:
        def __init__(self) -> None:
            self.points: list[Tensor] = []

        def __call__(self, x: Tensor, *_: object) -> Tensor:
            self.points.append(x)
            return torch.zeros_like(x)

        def logits(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 4)

    def first_step(ball: Ball) -> Tensor:
        x = torch.full((4, 1, 6, 5), 0.5 * ball.high)
        probe = Still()
        generator = torch.Generator().manual_seed(0)
        passes: Iterator[Any] = Trades(ball, steps=1).passes(
            Batch(x, torch.zeros(4).long(), generator), probe
        )
        next(passes)
        return (probe.points[0] - x) / ball.high

    torch.testing.assert_close(first_step(wide(BALL)), first_step(BALL), rtol=1e-3, atol=1e-5)


def test_an_exchange_that_remembers_does_not_go_with_a_loss_scale() -> None:
    with pytest.raises(ValueError, match="loss scale moves and overflows"):
        exchange_named("powersgd", 0, "fp16")
    for precision in ("fp32", "bf16"):
        exchange_named("powersgd", 0, precision)
