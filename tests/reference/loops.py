"""Each method as the flattest loop that a student would write, to judge the engine by.

Every loop takes a model, an optimizer and a list of batches, and trains in place. They use
autograd the plain way (`.backward()`, weight gradients included) and share nothing with gratis.
"""

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def natural(model, optimizer, batches, replays=1):
    for x, y in batches:
        for _ in range(replays):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def clip_linf(x, delta, eps):
    delta = delta.clamp(-eps, eps)
    return (x + delta).clamp(0, 1) - x


def pgd_training(model, optimizer, batches, eps, step, steps, start="random", only_correct=False):
    previous = None
    for x, y in batches:
        if start == "random":
            delta = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) - x
        elif start == "zero" or previous is None:
            delta = torch.zeros_like(x)
        else:
            delta = clip_linf(x, previous[: len(x)], eps)
        for _ in range(steps):
            gradient = input_gradient(model, x + delta, y, only_correct)
            delta = clip_linf(x, delta + step * gradient.sign(), eps)
        if previous is None or len(previous) <= len(delta):
            previous = delta
        else:
            previous = torch.cat([delta, previous[len(delta) :]])
        optimizer.zero_grad()
        F.cross_entropy(model((x + delta).clamp(0, 1)), y).backward()
        optimizer.step()


def input_gradient(model, point, y, only_correct=False):
    """By a whole backward, weight gradients thrown away, batch-norm buffers put back by hand."""
    buffers = {
        id(m): {k: v.clone() for k, v in m.named_buffers()}
        for m in model.modules()
        if isinstance(m, _BatchNorm)
    }
    point = point.clamp(0, 1).detach().requires_grad_()
    logits = model(point)
    losses = F.cross_entropy(logits, y, reduction="none")
    if only_correct:
        losses = losses[logits.argmax(1) == y]
    losses.sum().backward()
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            for name, value in m.named_buffers():
                value.copy_(buffers[id(m)][name])
    return point.grad


def free(model, optimizer, batches, eps, replays):
    kept = None
    for x, y in batches:
        if kept is None:
            kept = torch.zeros_like(x)
        delta = clip_linf(x, kept[: len(x)], eps)
        for _ in range(replays):
            point = (x + delta).clamp(0, 1).detach().requires_grad_()
            optimizer.zero_grad()
            F.cross_entropy(model(point), y).backward()
            optimizer.step()
            delta = clip_linf(x, delta + eps * point.grad.sign(), eps)
            kept = torch.cat([delta, kept[len(x) :]])


def untracked(model, function):
    """function(), batch-norm buffers put back by hand."""
    kept = {name: value.clone() for name, value in model.named_buffers()}
    result = function()
    for name, value in model.named_buffers():
        value.data.copy_(kept[name])
    return result


def n_fgsm(model, optimizer, batches, eps, noise, step):
    for x, y in batches:
        delta = (x + torch.empty_like(x).uniform_(-noise * eps, noise * eps)).clamp(0, 1) - x
        gradient = input_gradient(model, x + delta, y)
        point = (x + delta + step * gradient.sign()).clamp(0, 1)
        optimizer.zero_grad()
        F.cross_entropy(model(point), y).backward()
        optimizer.step()


def trades(model, optimizer, batches, eps, step, steps, beta):
    for x, y in batches:
        point = x + 0.001 * torch.randn_like(x)
        for _ in range(steps):
            point = point.detach().requires_grad_()

            def divergence(point=point, x=x):
                clean, there = F.softmax(model(x), 1), F.log_softmax(model(point), 1)
                return F.kl_div(there, clean, reduction="sum")

            (gradient,) = torch.autograd.grad(untracked(model, divergence), point)
            point = torch.min(torch.max(point + step * gradient.sign(), x - eps), x + eps)
            point = point.clamp(0, 1)
        optimizer.zero_grad()
        clean, there = model(x), model(point.detach())
        robust = F.kl_div(F.log_softmax(there, 1), F.softmax(clean, 1), reduction="sum") / len(x)
        (F.cross_entropy(clean, y) + beta * robust).backward()
        optimizer.step()


def gradalign(model, optimizer, batches, eps, step, strength, start="zero"):
    for x, y in batches:
        delta = torch.zeros_like(x)
        if start == "random":
            delta = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) - x
        first = input_gradient(model, x + delta, y)
        delta = clip_linf(x, delta + step * first.sign(), eps)
        nearby = (x + torch.empty_like(x).uniform_(-eps, eps)).requires_grad_()
        optimizer.zero_grad()
        loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y)
        beside = untracked(model, lambda nearby=nearby, y=y: F.cross_entropy(model(nearby), y))
        (second,) = torch.autograd.grad(beside, nearby, create_graph=True)
        cosines = [
            (a * b).sum() / (a.norm() * b.norm()) for a, b in zip(first, second, strict=True)
        ]
        (loss + strength * (1 - sum(cosines) / len(cosines))).backward()
        optimizer.step()


def yopo(model, optimizer, batches, eps, step, rounds, steps):
    """The model's first child is layer one, the others are the rest."""
    layer, rest = model[0], model[1:]
    for x, y in batches:
        delta = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) - x
        optimizer.zero_grad()
        for _ in range(rounds):
            z = layer((x + delta).clamp(0, 1))
            z.retain_grad()
            F.cross_entropy(rest(z), y).backward()
            costate = z.grad.detach()
            for _ in range(steps):
                point = (x + delta).clamp(0, 1).requires_grad_()
                (gradient,) = torch.autograd.grad((layer(point) * costate).sum(), point)
                delta = clip_linf(x, delta + step * gradient.sign(), eps)
            (layer((x + delta).clamp(0, 1)) * costate).sum().backward()
        optimizer.step()


def through(model, branch):
    """Set which norms of a network with auxiliary ones the next forward uses."""
    for module in model.modules():
        if hasattr(module, "branch"):
            module.branch = branch


def advprop(model, optimizer, batches, eps, step, steps):
    """Targeted steps through the auxiliary norms, then both losses, half each."""
    for x, y in batches:
        offsets = (torch.rand(len(y)) * 4).long()
        wanted = (y + offsets) % 4
        delta = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) - x
        through(model, "aux")
        for _ in range(steps):
            gradient = input_gradient(model, x + delta, wanted)
            delta = clip_linf(x, delta - step * gradient.sign(), eps)
        optimizer.zero_grad()
        adversarial = F.cross_entropy(model((x + delta).clamp(0, 1)), y)
        through(model, "main")
        clean = F.cross_entropy(model(x), y)
        (0.5 * clean + 0.5 * adversarial).backward()
        optimizer.step()


def fast_advprop(
    model, optimizer, batches, eps, step, share, rebalance=True, equalise=True, shuffle=True
):
    """Sums of gradients, each parameter's divided by the images it counts (Mei 2022's code)."""
    beta = 0.5 if rebalance else 1.0
    for x, y in batches:
        n = max(1, round((1 - share) * len(x)))
        clean, attacked = n, len(x) - n
        optimizer.zero_grad()
        F.cross_entropy(model(x[:n]), y[:n], reduction="sum").backward()
        x, y = x[n:], y[n:]
        through(model, "aux")
        point = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        delta, point = point - x, point.requires_grad_()
        (beta * F.cross_entropy(model(point), y, reduction="sum")).backward()
        delta = clip_linf(x, delta + step * point.grad.sign(), eps)
        order = torch.randperm(attacked) if shuffle else torch.arange(attacked)
        adversarial = (x + delta).clamp(0, 1)[order]
        (beta * F.cross_entropy(model(adversarial), y[order], reduction="sum")).backward()
        through(model, "main")
        for name, parameter in model.named_parameters():
            counted = clean + 2 * beta * attacked
            if equalise and "main_norm" in name:
                counted = clean
            elif equalise and "aux_norm" in name:
                counted = 2 * beta * attacked
            parameter.grad /= counted
        optimizer.step()
