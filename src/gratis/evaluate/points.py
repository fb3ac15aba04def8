"""The adversarial points of any attack, from Python."""

from torch import Tensor, nn

from gratis.attacks import Attacked, build_attack
from gratis.attacks.confirming import near
from gratis.attacks.search import image_keys
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.evaluate.clean import right_when_clean
from gratis.evaluate.mode import as_evaluated
from gratis.names import ATTACKS_WITH_START, parse_attack
from gratis.nn.wrapped import bare
from gratis.tasks import Classification


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    name: str,
    *,
    ball: Ball,
    task: Classification | None = None,
    seed: int = 0,
    start: Tensor | None = None,
) -> Tensor:
    """Points [B, C, H, W] of the ball around images x [B, C, H, W] with labels y [B].

    name: as for robust_accuracy: "pgd-50-10", "apgd-ce", "autoattack", ... For an image that the
    attack breaks the point is misclassified; for another it is the last one tried. Images that
    are misclassified already come back as they are.
    start: points of the ball where the first restart begins, shaped like x; ValueError for an
    attack that has no such start.
    The model's mode, gradients and running statistics are left as they were. Images that occur
    twice get the same point.
    """
    task, model = task or Classification(), bare(model)
    ball.check(x)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels; one label an image is needed")
    if start is not None:
        _check_start(name, x, start, ball)
    built = build_attack(name)
    out = x.clone()
    with as_evaluated(model):
        keys = image_keys(seed, x, y)
        whole = Attacked(model, x, y, ball, task.losses, task.correct, keys, Meter(), start=start)
        right = right_when_clean(whole).nonzero().flatten()
        if len(right):
            out[right] = built(whole.of(right))[0]
    return out


def _check_start(name: str, x: Tensor, start: Tensor, ball: Ball) -> None:
    if parse_attack(name).kind not in ATTACKS_WITH_START:
        raise ValueError(
            f"attack {name!r} has no start to choose; those with one: "
            f"{', '.join(ATTACKS_WITH_START)}"
        )
    if start.shape != x.shape:
        raise ValueError(
            f"start has shape {list(start.shape)}, the images {list(x.shape)}; "
            "a starting point for each image is needed"
        )
    ball.check(start)
    if not bool(near(ball, x, start).all()):
        farthest = float(ball.size(start - x).max())
        raise ValueError(
            f"start lies up to {farthest:.4g} from the images in {ball.norm}, outside eps "
            f"{ball.eps:.4g}; project it first"
        )
