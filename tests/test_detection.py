"""Detection: RetinaNet's loss and gradients, boxes that move with their images, what it costs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList

from gratis.balls import Linf
from gratis.boxes import Answers, mirrored, retinanet_losses, targets
from gratis.budget import PASS, PROBE
from gratis.learner import Learner
from gratis.methods import METHODS, FastAdvProp
from gratis.nn import add_aux, build_model
from gratis.nn.auxbn import branched
from gratis.passes import Batch
from gratis.prober import Prober
from gratis.tasks import Detection

CLASSES, SIZE = 3, 64
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def network(name: str = "tests.tiny_detector:build", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        name, classes=CLASSES, channels=3, image_size=SIZE, mean=MEAN, std=STD, **options
    )


def resnet(**options: object) -> nn.Module:
    return network("retinanet-r18", **{"width": 16, "smallest_anchor": 16, **options})


def scenes(count: int = 4) -> tuple[Tensor, Tensor]:
    """Images and their boxes: of image i the box [i, 4, i + 16, 40]; the last one has none."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    y = torch.zeros(count, 2, 5)
    y[..., 4] = -1
    for image in range(count - 1):
        y[image, 0] = torch.tensor([image, 4, image + 16, 40, image % CLASSES])
    y[0, 1] = torch.tensor([30.0, 20.0, 60.0, 50.0, 2.0])
    return x, y


def torchvisions(model: nn.Module) -> RetinaNet:
    """Torchvision's own network of the same weights, its own normalisation and no resizing."""
    net = model.net
    rival = RetinaNet(
        net.backbone,
        CLASSES,
        anchor_generator=net.anchor_generator,
        head=net.head,
        image_mean=MEAN,
        image_std=STD,
        min_size=SIZE,
        max_size=SIZE,
    )
    return rival.train()


@pytest.mark.parametrize("build", [network, resnet])
def test_the_loss_is_torchvisions_own_of_the_same_weights(build: Callable[[], nn.Module]) -> None:
    model, (x, y) = build().train(), scenes()
    each = retinanet_losses(model(x), y).detach()
    rival = torchvisions(model)
    whole = {name: part.detach() for name, part in rival(list(x), targets(y)).items()}
    assert Detection().loss(model(x), y).item() == pytest.approx(
        sum(float(part) for part in whole.values()), rel=1e-5
    )
    for name, part in (("class", "classification"), ("box", "bbox_regression")):
        mine = Detection(name).losses(model(x), y)
        assert mine.mean().item() == pytest.approx(float(whole[part]), rel=1e-5)
    features = list(model.net.backbone(model.normalize(x)).values())
    heads = model.net.head(features)
    (anchors,) = model.net.anchor_generator(ImageList(x[:1], [(SIZE, SIZE)]), features)
    for image in range(len(x)):
        alone = rival.compute_loss(
            targets(y[image : image + 1]), {k: v[image, None] for k, v in heads.items()}, [anchors]
        )
        assert each[image].item() == pytest.approx(
            sum(float(part.detach()) for part in alone.values()), rel=1e-5
        )
    assert float(Detection("box").losses(model(x), y)[-1].detach()) == 0  # no box, nothing to place


def test_rows_of_padding_change_nothing() -> None:
    model, (x, y) = network().eval(), scenes()
    padded = torch.cat([torch.full((4, 3, 5), -1.0), y], dim=1)
    answers = model(x)
    assert torch.equal(retinanet_losses(answers, padded), retinanet_losses(answers, y))


@pytest.mark.parametrize("attack", ["sum", "class", "box"])
def test_the_input_gradient_is_the_slope_of_the_loss(attack: str) -> None:
    model, (x, y) = network().double().eval(), scenes()
    x = x.double()
    task = Detection(attack)
    grad = Prober(model, task.losses)(x, y)
    step, places = 1e-6, [(0, 0, 10, 8), (1, 2, 30, 12), (2, 1, 20, 50)]
    moved = x[[image for image, *_ in places for _ in (1, -1)]]
    for row, (_, *place) in enumerate(places):
        moved[2 * row, *place] += step
        moved[2 * row + 1, *place] -= step
    with torch.no_grad():  # in eval mode an image's answers are its own
        up, down = task.losses(model(moved), y[[0, 0, 1, 1, 2, 2]]).view(3, 2).T
    slopes = ((up - down) / (2 * step)).tolist()
    assert [grad[*place].item() for place in places] == pytest.approx(slopes, rel=1e-4, abs=1e-9)
    assert grad.abs().sum() > 0


def test_answers_keep_pixels_apart_in_bf16() -> None:
    model, (x, y) = network().train(), scenes()
    with torch.autocast("cpu", torch.bfloat16):
        answers = model(x)
    assert answers.anchors.dtype == torch.float32
    assert torch.equal(answers.anchors, model(x).anchors)
    loss = Detection().loss(answers, y)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(Detection().loss(model(x), y).item(), rel=0.05)


def test_anchors_cover_the_image_level_by_level() -> None:
    answers = resnet()(scenes()[0])
    sides = [math.ceil(SIZE / stride) for stride in (8, 16, 32, 64, 128)]
    assert answers.levels == tuple(9 * side**2 for side in sides)
    assert answers.classes.shape == (4, sum(answers.levels), CLASSES)
    assert answers.offsets.shape == (4, sum(answers.levels), 4)
    first = answers.anchors[3]  # three shapes of three sizes each; the square is the second shape
    assert (first[2:] - first[:2]).tolist() == pytest.approx([16, 16], abs=1)


def test_a_mirrored_box_in_closed_form() -> None:
    y = torch.tensor([[[10.0, 3.0, 30.0, 9.0, 2.0], [0, 0, 0, 0, -1]]]).repeat(2, 1, 1)
    found = mirrored(y, torch.tensor([True, False]), 100)
    assert found[0, 0].tolist() == [70, 3, 90, 9, 2]
    assert torch.equal(found[0, 1], y[0, 1])  # padding stays padding
    assert torch.equal(found[1], y[1])
    assert torch.equal(mirrored(found, torch.tensor([True, False]), 100), y)


# --- in the engine


def learner(model: nn.Module, task: Detection | None = None) -> Learner:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return Learner(model, optimizer, task or Detection(), seed=0)


def test_boxes_stay_with_their_images_when_a_batch_is_split_and_shuffled() -> None:
    x, y = scenes(8)
    x[:, 0, 0, 0] = torch.arange(8.0)  # its own number, for the test to know it by

    def together(images: Tensor, boxes: Tensor) -> None:
        for image, rows in zip(images, boxes, strict=True):
            assert torch.equal(rows, y[int(image[0, 0, 0])])

    batch = Batch(x, y, torch.Generator().manual_seed(3))
    parts = batch.split(4)
    assert [len(part.x) for part in parts] == [2, 2, 2, 2]
    for part in parts:
        together(part.x, part.y)
    images, boxes = batch.shuffled(x, y)
    assert not torch.equal(images, x)
    together(images, boxes)
    alone = Batch(x[:4], y[:4], torch.Generator().manual_seed(3), peers=2)
    alone.gather = lambda ours: x if ours.ndim == 4 else y  # what both processes hold
    images, boxes = alone.shuffled(x[:4], y[:4])
    assert len(images) == 4
    together(images, boxes)


@pytest.mark.parametrize(
    ("name", "options", "task"),
    [
        ("natural", {}, Detection()),
        ("fast-advprop", {"adversarial": 0.5}, Detection()),
        ("fast-advprop", {"adversarial": 0.5, "reuse": False}, Detection("class")),
        ("pgd", {"steps": 2}, Detection("box")),
        ("free", {"replays": 2}, Detection()),
    ],
)
def test_the_predicted_cost_is_the_metered_one(
    name: str, options: dict[str, object], task: Detection
) -> None:
    method = METHODS[name](**options) if name == "natural" else METHODS[name](Linf(0.01), **options)
    model, (x, y) = network(), scenes()
    if method.auxiliary:
        add_aux(model)
    engine = learner(model, task)
    metrics = engine.fit(method, Batch(x, y))
    assert engine.spent.thirds == sum(method.update_thirds(len(x)))
    assert all(torch.isfinite(loss) for loss in metrics.losses)
    assert [int(count) for count in metrics.labelled] == [0] * len(metrics.losses)


def test_fast_advprop_by_a_probe_costs_two_thirds_of_an_adversarial_image_more() -> None:
    one, other = (FastAdvProp(Linf(0.01), 0.25, reuse=reuse) for reuse in (True, False))
    assert one.update_thirds(8) == (PASS * 10,)
    assert other.update_thirds(8) == (PASS * 10 + PROBE * 2,)
    assert one.cost == pytest.approx(1.25)
    assert other.cost == pytest.approx(1.25 + 2 / 3 * 0.25)


@pytest.mark.parametrize(
    ("climbed", "reuse"), [("sum", True), ("sum", False), ("class", False), ("box", False)]
)
def test_fast_advprop_steps_up_the_loss_that_is_asked_for(climbed: str, reuse: bool) -> None:
    """With one norm group nothing is permuted that matters, so the flat loop is a few lines."""
    ball, (x, y) = Linf(0.02), scenes()
    method = FastAdvProp(ball, 0.5, reuse=reuse, start="clean", shuffle=False)
    model = add_aux(network()).train()
    seen = []
    engine = learner(model, Detection(climbed))
    backward = engine.backward
    engine.backward = lambda p: seen.append(p) or backward(p)  # type: ignore[func-returns-value,method-assign,assignment]
    flat = add_aux(network()).train()
    for norm in branched(flat):
        norm.branch = "aux"
    point = x[2:].clone().requires_grad_()
    losses = retinanet_losses(flat(point), y[2:], climbed)
    (grad,) = torch.autograd.grad(losses.sum(), point)
    wanted = (x[2:] + 0.02 * grad.sign()).clamp(0, 1)
    engine.fit(method, Batch(x, y))
    clean, noisy, adversarial = seen
    assert (clean.norm, noisy.norm, adversarial.norm) == ("main", "aux", "aux")
    assert torch.equal(noisy.x.detach(), x[2:])
    assert torch.equal(adversarial.y, y[2:])
    same = (adversarial.x - wanted).abs() < 1e-6
    assert same.float().mean() > 0.999  # but where a slope is 0 to rounding
    assert (adversarial.x - x[2:]).abs().max().item() == pytest.approx(0.02, abs=1e-6)


def test_the_backbone_has_auxiliary_norms_and_none_is_frozen() -> None:
    model = resnet()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(p.requires_grad for p in model.parameters())
    before = model.net.backbone.body.bn1.running_mean.clone()
    add_aux(model)
    assert len(branched(model)) == 20
    x, y = scenes()
    learner(model).fit(METHODS["natural"](), Batch(x, y))
    first = branched(model)[0]
    assert not torch.equal(first.main_norm.running_mean, before)
    assert torch.equal(first.aux_norm.running_mean, before)  # no image went through it


def test_a_square_of_one_channel_or_a_wrong_option_is_refused() -> None:
    for options, message in [
        ({"channels": 1}, "3 channels"),
        ({"head_norm": "group", "width": 48}, "that 32 divides"),
        ({"head_norm": "batch"}, "neither none nor group"),
        ({"depth": 3}, "no option depth"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_model(
                "retinanet-r18", **{"classes": 2, "channels": 3, "image_size": 64, **options}
            )


def test_boxes_are_found_where_the_answers_put_them() -> None:
    net = network().net
    x = scenes(2)[0]
    answers = net(x)
    classes = torch.full_like(answers.classes, -20.0)
    chosen = int(torch.where((answers.anchors[:, :2] >= 8).all(1))[0][0])
    classes[0, chosen, 1] = 5.0
    kept = Answers(classes, torch.zeros_like(answers.offsets), answers.anchors, answers.levels)
    one, none = net.found(kept, [(SIZE, SIZE), (SIZE, SIZE)])
    assert torch.allclose(one["boxes"], answers.anchors[chosen : chosen + 1])
    assert one["labels"].tolist() == [1]
    assert one["scores"].item() == pytest.approx(torch.tensor(5.0).sigmoid().item())
    assert len(none["boxes"]) == 0
