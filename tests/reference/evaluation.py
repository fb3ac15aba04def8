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
                else:
                    delta = delta + alpha * grad / grad.norm()
                    delta = delta * min(1.0, eps / delta.norm().item())
                delta = (image + delta).clamp(0, 1) - image
            fooled |= model((image + delta).clamp(0, 1)).argmax(1).item() != label.item()
        broken.append(fooled)
    return torch.tensor(broken)
