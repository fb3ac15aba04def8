"""Networks with images and labels to evaluate them on, and what evaluation asks of a network."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gratis.balls import Ball, Linf


def batched(x: Tensor, y: Tensor, size: int | None = None) -> list[tuple[Tensor, Tensor]]:
    size = size or len(x)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def linear_model(classes: int, pixels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double()


def conv_net(channels: int = 3, classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def own_labels(model: nn.Module, x: Tensor) -> Tensor:
    """What the model itself says of x: it is right about every image."""
    model.eval()
    with torch.no_grad():
        labels = model(x).argmax(1)
    model.train()
    return labels


def a_problem(count: int = 40) -> tuple[nn.Module, Tensor, Tensor, Ball]:
    """A float64 net, labels that it mostly gets right, and a radius that breaks about half."""
    torch.manual_seed(5)
    model = conv_net().double()
    x = torch.rand(count, 3, 6, 5, dtype=torch.float64)
    y = own_labels(model, x)
    y[::7] = (y[::7] + 1) % 4
    return model, x, y, Linf(0.03)


def distance_to_the_boundary(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """For each image the largest gain of (z_j - z_y) within the ball, less the margin, over j."""
    w = model[1].weight
    z = model(x)
    worst = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for j in range(z.shape[1]):
        direction = (w[j] - w[y]).view_as(x)
        if ball.norm == "linf":
            room = torch.where(direction > 0, ball.high - x, x - ball.low).clamp(max=ball.eps)
            gain = (direction.abs() * room).flatten(1).sum(1)
        else:  # the box never binds in these tests
            gain = ball.eps * direction.flatten(1).norm(dim=1)
        crossed = torch.where(y == j, -torch.inf, z[:, j] - z[torch.arange(len(y)), y] + gain)
        worst = torch.maximum(worst, crossed)
    return worst.detach()


def a_linear_problem(
    classes: int, sharpness: float, ball: Ball
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Model, images, labels (a tenth of them wrong) and which images can be broken at all."""
    x = torch.rand(200, 1, 6, 8, dtype=torch.float64)
    model = linear_model(classes, 48)
    for p in model.parameters():
        p.data *= sharpness
    y = own_labels(model, x)
    y[:20] = (y[:20] + 1) % classes
    worst = distance_to_the_boundary(model, x, y, ball)
    assert worst.abs().min() > 1e-5  # no image so near that rounding decides
    return model, x, y, (model(x).argmax(1) == y) & (worst > 0)


WIDE = {"low": -9.0, "high": 10.0}


class Recording(nn.Module):
    """Keeps the points that gradients are asked of."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.inner(x)


class Counting(nn.Module):
    """Counts the images that go forward and those whose gradient comes back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._came_back)
        return self.inner(x)

    def _came_back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@pytest.fixture(scope="module")
def digits_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        for first in range(100, len(x), 50):
            batch = slice(first, first + 50)
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval(), x[:100], y[:100]
