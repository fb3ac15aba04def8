"""A user's own loop: mistakes explained, scaled losses, autocast, batches broken off."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from gratis import L2, FastAdvProp, Free, Learner, Linf, PGDTraining, add_aux, fgsm, fgsm_rs
from gratis.passes import Batch
from tests.small_net import EPS, sgd, small_net, some_batches


def test_missing_backward_is_explained():
    with pytest.raises(RuntimeError, match=r"x\.grad is still empty.*loss\.backward\(\)"):
        for _ in Free(Linf(EPS)).batches(some_batches()):
            pass


def test_missing_model_is_explained():
    with pytest.raises(ValueError, match=r"batches\(loader, model\)"):
        next(fgsm_rs(Linf(EPS)).batches(some_batches()))


def test_normalised_input_is_explained():
    x, y = some_batches()[0]
    with pytest.raises(ValueError, match="move normalisation into the model"):
        next(Free(Linf(EPS)).batches([((x - 0.5) / 0.25, y)]))


@pytest.mark.parametrize("ball", [Linf(EPS), L2(0.5)], ids=["linf", "l2"])
def test_scaled_loss_changes_nothing(ball):
    """A gradient scaler multiplies the loss: only the direction of x.grad may count."""
    deltas = []
    for scale in (1.0, 65536.0):
        method, model = Free(ball, replays=3), small_net().double()
        batches = [(x.double(), y) for x, y in some_batches()]
        for x, y in method.batches(batches):
            (scale * F.cross_entropy(model(x), y)).backward()
        deltas.append(method.state()["delta"])
    torch.testing.assert_close(deltas[0], deltas[1])


def test_own_loop_under_autocast():
    method, model = Free(Linf(EPS), replays=2), small_net()
    optimizer = sgd(model)
    for x, y in method.batches(some_batches()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert x.dtype == torch.float32
        assert x.grad.dtype == torch.float32
    assert method.state()["delta"].dtype == torch.float32


def test_a_batch_that_was_broken_off_leaves_nothing_for_the_next():
    """As when a device's memory did not suffice, and the caller goes on with a smaller batch."""
    x, y = some_batches((20,))[0]
    method = FastAdvProp(Linf(0.1))

    def learner():
        model = add_aux(small_net())
        return Learner(model, sgd(model), seed=0)

    broken, fresh = learner(), learner()
    backward, calls = broken.backward, itertools.count()

    def failing(p):
        if next(calls) == 1:
            raise MemoryError
        return backward(p)

    broken.backward = failing
    with pytest.raises(MemoryError):
        broken.fit(method, Batch(x, y))
    for each in (broken, fresh):
        each.fit(method, Batch(x[:10], y[:10]))
    ours, theirs = (dict(each.model.named_parameters()) for each in (broken, fresh))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_epochs_of_a_seed_go_on_from_each_other():
    """Two calls of two batches draw what one call of four draws; so does one taken up later."""
    x, y = torch.full_like(some_batches()[0][0][:3], 0.5), torch.zeros(3).long()

    def drawn(method, count, **options):
        return [
            p.detach().clone() for p, _ in method.batches([(x, y)] * count, small_net(), **options)
        ]

    whole = drawn(fgsm_rs(Linf(EPS)), 4, seed=1)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(whole, 2))
    method = fgsm_rs(Linf(EPS))
    halves = drawn(method, 2, seed=1) + drawn(method, 2, seed=1)
    later = drawn(fgsm_rs(Linf(EPS)), 2, seed=1, updates=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], later, strict=True))


def test_two_loops_at_once_do_not_disturb_each_other():
    x, y = torch.full_like(some_batches()[0][0][:3], 0.5), torch.zeros(3).long()
    method = fgsm_rs(Linf(EPS))
    loops = [method.batches([(x, y)] * 3, small_net(), seed=1, updates=0) for _ in range(2)]
    for (one, _), (other, _) in zip(*loops, strict=True):
        assert torch.equal(one, other)


# --- losses and precisions of one's own


def bce(logits, y):
    return F.binary_cross_entropy_with_logits(logits.flatten(), y.float(), reduction="none")


def drawn_by(method, batches, model, **options):
    return [x.detach() for x, _ in method.batches(batches, model, **options)]


def test_one_logit_without_its_loss_is_refused():
    """Its softmax is 1 whatever it is: attacks would climb nothing, and go nowhere."""
    batches = [(x, y % 2) for x, y in some_batches()]
    for method in (fgsm_rs(Linf(EPS)), PGDTraining(Linf(EPS), 2, targeted=True)):
        with pytest.raises(ValueError, match=r"shaped \(8, 1\).*batches\(loader, model, loss="):
            next(method.batches(batches, small_net(classes=1)))


def test_answers_that_are_no_tensor_ask_for_a_loss():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return {"logits": self.net(x)}

    with pytest.raises(ValueError, match=r"answers are a dict; .*loss="):
        next(fgsm_rs(Linf(EPS)).batches(some_batches(), Named()))
    found = fgsm_rs(Linf(EPS)).batches(
        some_batches(), Named(), loss=lambda out, y: F.cross_entropy(out["logits"], y)
    )
    assert len(list(found)) == 3


def test_probes_climb_the_loss_that_is_given():
    model = small_net(classes=1)
    (x, y), *_ = [(x, y % 2) for x, y in some_batches()]
    (point,) = drawn_by(fgsm(Linf(EPS)), [(x, y)], model, loss=bce)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(bce(model(leaf), y).sum(), leaf)
    assert grad.abs().max() > 0
    assert torch.equal(point, Linf(EPS).place(x, EPS * grad.sign()))


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_probes_run_in_the_precision_of_the_loop(name):
    seen, model = [], small_net()
    model[0].register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    (x, y), *_ = some_batches()
    (point,) = drawn_by(fgsm_rs(Linf(EPS)), [(x, y)], model, precision=name)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert seen == [kinds[name]]
    assert point.dtype == torch.float32


def test_a_precision_that_is_none_is_named():
    with pytest.raises(ValueError, match="precision='half' is none of fp32, bf16, fp16"):
        next(fgsm_rs(Linf(EPS)).batches(some_batches(), small_net(), precision="half"))


# --- several processes of one's own


def test_each_part_of_a_batch_draws_what_is_its_own():
    x, y = torch.full((6, 1, 6, 5), 0.5), torch.zeros(6).long()
    (whole,) = drawn_by(fgsm_rs(Linf(EPS)), [(x, y)], small_net().eval(), seed=1)
    parts = [
        drawn_by(
            fgsm_rs(Linf(EPS)),
            [(x[place : place + 3], y[place : place + 3])],
            small_net().eval(),
            seed=1,
            rank=rank,
            world=2,
        )[0]
        for rank, place in enumerate((0, 3))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.equal(*parts)


def test_a_rank_outside_its_world_is_refused():
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"rank={rank} .*world={world}"):
            next(fgsm_rs(Linf(EPS)).batches(some_batches(), small_net(), rank=rank, world=world))
