"""Evaluation as the plainest loop: image by image, restart by restart, nothing dropped.

It shares nothing with gratis; where each restart of each image begins is given.
"""

import torch
import torch.nn.functional as F


def broken_by_pgd(model, x, y, starts, norm, eps, alpha, steps):
    """Which images [N] are misclassified clean, or at any point of any restart.

    starts: for each image, the first perturbation of each of its restarts [1, C, H, W].
    """
    broken = []
    for i in range(len(x)):
        image, label = x[i : i + 1], y[i : i + 1]
        fooled = model(image).argmax(1).item() != label.item()
        for start in starts[i]:
            delta = start
            for _ in range(steps):
                point = (image + delta).clamp(0, 1).requires_grad_()
                logits = model(point)
                fooled |= logits.argmax(1).item() != label.item()
                (grad,) = torch.autograd.grad(F.cross_entropy(logits, label), point)
                if norm == "linf":
                    delta = (delta + alpha * grad.sign()).clamp(-eps, eps)
                elif norm == "l2":
                    delta = delta + alpha * grad / grad.norm()
                    delta = delta * min(1.0, eps / delta.norm().item())
                else:
                    delta = l1_nearest(image, delta + alpha * l1_step(point, grad), eps)
                delta = (image + delta).clamp(0, 1) - image
            fooled |= model((image + delta).clamp(0, 1)).argmax(1).item() != label.item()
        broken.append(fooled)
    return torch.tensor(broken)


def l1_step(point, grad):
    """The signs of the largest hundredth of the gradient's pixels, of those that can move on."""
    stuck = ((point >= 1) & (grad > 0)) | ((point <= 0) & (grad < 0))
    grad = torch.where(stuck, 0.0, grad)
    flat = grad.flatten().abs()
    border = flat.sort(descending=True).values[max(1, -(-len(flat) // 100)) - 1]
    chosen = (grad.abs() >= border) & (grad != 0)
    return grad.sign() * chosen / chosen.sum()


def l1_nearest(image, delta, eps):
    """The nearest perturbation of length eps at most with all pixels in [0, 1], by bisection."""
    low, high = 0.0, delta.abs().max().item()
    for _ in range(200):
        less = (low + high) / 2 if low else 0.0
        kept = delta.sign() * (delta.abs() - less).clamp(min=0)
        kept = (image + kept).clamp(0, 1) - image
        if not low and kept.abs().sum() <= eps:
            return kept
        low = low or 1e-300
        if kept.abs().sum() > eps:
            low = max(less, low)
        else:
            high = less
    return kept


def apgd_linf(model, image, label, start, eps, steps, checkpoints):
    """(fooled, where it ends): Croce & Hein 2020, algorithm 1, of one image on cross entropy.

    checkpoints: after how many steps the step size is looked at.
    """

    def near(point):
        return torch.max(torch.min(point, image + eps), image - eps).clamp(0, 1)

    def at(point):
        nonlocal fooled
        point = point.detach().requires_grad_()
        logits = model(point)
        fooled |= logits.argmax(1).item() != label.item()
        loss = F.cross_entropy(logits, label)
        return loss.item(), torch.autograd.grad(loss, point)[0]

    fooled = False
    before = now = best = near(start)
    loss, grad = at(now)
    best_loss, best_grad = loss, grad
    size, checked_loss, just_halved = 2 * eps, loss, True
    rises, last = 0, 0
    for step in range(1, steps + 1):
        stepped = near(now + size * grad.sign())
        share = 1.0 if step == 1 else 0.75
        following = near(now + share * (stepped - now) + (1 - share) * (now - before))
        before, now, earlier = now, following, loss
        loss, grad = at(now)
        rises += loss > earlier
        if loss > best_loss:
            best, best_loss, best_grad = now, loss, grad
        if step in checkpoints:
            stuck = not just_halved and best_loss <= checked_loss
            just_halved = rises <= 0.75 * (step - last) or stuck
            if just_halved:
                size, now, grad = size / 2, best, best_grad
            checked_loss, rises, last = best_loss, 0, step
    return fooled, now
