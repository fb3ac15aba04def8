"""Free's perturbation: kept over batches and epochs, copied, and never lost."""

import pytest
import torch
import torch.nn.functional as F

from gratis import Free, Learner, Linf
from gratis.passes import Batch
from tests.small_net import EPS, sgd, small_net, some_batches


def test_free_keeps_its_perturbation_over_batches_and_epochs():
    method, model = Free(Linf(EPS), replays=2), small_net()
    learner = Learner(model, sgd(model))
    (x1, y1), (x2, y2), (x3, y3) = some_batches()
    learner.fit(method, Batch(x1, y1))
    kept = method.state()["delta"].clone()
    seen = []
    for p in method.passes(Batch(x2, y2), learner.probe):
        seen.append(p.x.detach().clone())
        learner.backward(p)
    assert torch.equal(seen[0], Linf(EPS).place(x2, Linf(EPS).project(x2, kept)))
    assert seen[0].min() >= 0
    assert seen[0].max() <= 1
    # a short last batch: its places change, the others stay as they were
    before = method.state()["delta"].clone()
    learner.fit(method, Batch(x3, y3))
    after = method.state()["delta"]
    assert not torch.equal(before[:5], after[:5])
    assert torch.equal(before[5:], after[5:])
    # the next epoch begins where this one ended
    first = next(iter(method.passes(Batch(x1, y1), learner.probe)))
    assert torch.equal(first.x.detach(), Linf(EPS).place(x1, Linf(EPS).project(x1, after)))


def test_free_state_survives_a_copy():
    model = small_net()
    learner, method = Learner(model, sgd(model)), Free(Linf(EPS), replays=2)
    for x, y in some_batches():
        learner.fit(method, Batch(x, y))
    copied = Free(Linf(EPS), replays=2)
    copied.load_state({k: v.clone() for k, v in method.state().items()})
    x, y = some_batches()[0]
    one = next(iter(method.passes(Batch(x, y), learner.probe)))
    other = next(iter(copied.passes(Batch(x, y), learner.probe)))
    assert torch.equal(one.x, other.x)


def test_break_in_mid_replay_loses_nothing():
    method, model = Free(Linf(EPS), replays=4), small_net()
    optimizer = sgd(model)
    for n, (x, y) in enumerate(method.batches(some_batches())):
        if n == 2:
            break
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    kept = method.state()["delta"]
    assert kept.abs().max() == pytest.approx(EPS, rel=1e-5)


def test_image_with_infinite_gradient_keeps_its_perturbation():
    method = Free(Linf(EPS), replays=3)
    x, y = some_batches()[0]
    passes = method.passes(Batch(x, y), None)
    p = next(passes)
    p.x.grad = torch.ones_like(x)
    p = next(passes)
    before = method.state()["delta"].clone()
    p.x.grad = -torch.ones_like(x)
    p.x.grad[2, 0, 0, 0] = torch.inf
    p.x.grad[4, 0, 1, 1] = torch.nan
    next(passes)
    after = method.state()["delta"]
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert kept.nonzero().flatten().tolist() == [2, 4]
    assert after.isfinite().all()


def test_gentler_keeps_the_carried_perturbation():
    method = Free(Linf(EPS), replays=1)
    x, y = some_batches()[0]
    passes = method.passes(Batch(x, y), None)
    next(passes).x.grad = torch.ones_like(x)
    next(passes, None)
    changed, _ = method.gentler()
    assert torch.equal(changed.state()["delta"], method.state()["delta"])
    assert changed.step_size == pytest.approx(0.75 * EPS)
