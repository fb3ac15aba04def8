"""From a recipe to the things that it names: device, data, network, learner, plan."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gratis.budget import Plan, passes_of, plan, thirds_of
from gratis.data import Images, Loader, Unlabelled, hold_out, load
from gratis.data.unlabelled import drawn, keep_labels, together
from gratis.learner import Learner
from gratis.nn import add_aux, build_model, group_norms, set_momentum, sync_norms
from gratis.nn.freezing import behind_normalize, freeze
from gratis.optim import build_optimizer
from gratis.optim.schedules import (
    Schedule,
    constant,
    cosine,
    cycled_momentum,
    cyclic,
    piecewise,
    warmed,
)
from gratis.passes import Method
from gratis.recipe import Recipe
from gratis.sections import Data
from gratis.sections import Schedule as ScheduleSpec
from gratis.sections import Unlabelled as UnlabelledSpec
from gratis.tasks import Classification


@dataclass(frozen=True)
class TrainingData:
    training: Images
    held_out: Images
    skipped: tuple[str, ...]
    unlabelled: Unlabelled | None = None


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is a card, else the CPU; ValueError for a device that is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"engine.device: {name!r} is no device; try cpu, cuda or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"engine.device: {name!r} asked for, but no CUDA device is visible")
    return device


def load_split(data: Data, split: str) -> Images:
    return load(data.name, split, root=data.root, image_size=data.image_size)


def training_data(recipe: Recipe) -> TrainingData:
    """The recipe's training images, less the ones held out for checks; and those without labels.

    Held-out images are among those whose labels are kept. Of all others the labels are not even
    here. An epoch, and what a budget counts as one training image, is of the labelled ones.
    """
    images = load_split(recipe.data, "train")
    if recipe.data.limit is not None:
        images = images.select(torch.arange(min(recipe.data.limit, len(images))))
    others = images.x[:0]
    if recipe.data.labels is not None:
        images, others = keep_labels(images, recipe.data.labels, seed=recipe.seed)
    share = recipe.data.holdout
    training, held_out = hold_out(images, int(share) if share >= 1 else share, seed=recipe.seed)
    if recipe.data.batch_size > len(training):
        raise ValueError(
            f"data.batch_size: {recipe.data.batch_size} images a batch, but there are only "
            f"{len(training)} to train on; give a smaller batch"
        )
    return TrainingData(training, held_out, images.skipped, _unlabelled(recipe, training, others))


def _unlabelled(recipe: Recipe, training: Images, others: Tensor) -> Unlabelled | None:
    """`others` and the images of another source; ValueError where the method cannot use them."""
    if recipe.data.labels is None and recipe.data.unlabelled is None:
        return None
    spec = recipe.data.unlabelled or UnlabelledSpec()
    if not spec.share:
        return None
    if spec.pseudo is None and not recipe.build_method().unlabelled:
        raise ValueError(
            f"data.unlabelled: {recipe.method['name']} cannot learn from images without labels; "
            "give data.unlabelled.pseudo, a run whose model labels them; or method=trades; or "
            "data.unlabelled.share=0, to leave them out"
        )
    if spec.pseudo is None and recipe.guard.mode == "early-stop":
        raise ValueError(
            "guard.mode: early-stop looks at training batches, where images have no labels; "
            "recover looks at held-out ones"
        )
    if recipe.data.batch_size * (1 - spec.share) < 1:
        raise ValueError(
            f"data.unlabelled.share: {spec.share} of a batch of {recipe.data.batch_size} leaves "
            "no place for a labelled image; give less"
        )
    parts = [others]
    if spec.name is not None:
        height, width = training.x.shape[2:]
        size = height if height == width else recipe.data.image_size
        source = load(spec.name, "train", root=spec.root, image_size=size).x
        parts.append(source if spec.limit is None else drawn(source, spec.limit, seed=recipe.seed))
    return together(parts, training, spec.share)


def parts_of_batch(recipe: Recipe, processes: int, begun: int | None = None) -> int:
    """In how many equal parts each batch is learned; ValueError where they cannot be.

    begun: the parts that the run began with, if it goes on.
    """
    size, parts = recipe.data.batch_size, begun or recipe.engine.parts or processes
    if size % parts:
        raise ValueError(
            f"data.batch_size: {size} images, of all processes together, cannot be divided "
            f"equally among {parts}; give a multiple of {parts}"
        )
    if parts % processes:
        numbers = [str(number) for number in range(1, parts + 1) if parts % number == 0]
        raise ValueError(
            f"{processes} processes cannot share the {parts} parts of each batch equally (the run "
            f"{'began so' if begun else 'asks for engine.parts'}); start {', '.join(numbers)}"
            + ("" if begun else f", or set engine.parts to a multiple of {processes}")
        )
    if recipe.model.norms == "synced" and parts != processes:
        raise ValueError(
            f"model.norms: synced norms see the images of all processes at once, but these {parts} "
            f"parts of a batch are learned by {processes} processes one after the other; start "
            f"{parts} processes, or set model.norms=local"
        )
    return parts


def build_loader(
    recipe: Recipe,
    images: Images,
    device: torch.device,
    *,
    take: Callable[[int], Tensor] = torch.arange,
    world: int = 1,
    unlabelled: Unlabelled | None = None,
) -> Loader:
    """The recipe's batches of `images` on `device`; see Loader for the other arguments."""
    return Loader(
        images,
        recipe.data.batch_size,
        seed=recipe.seed,
        augment=recipe.data.augment,
        drop_last=recipe.data.drop_last,
        device=device,
        take=take,
        world=world,
        unlabelled=unlabelled,
    )


def network(recipe: Recipe, images: Images) -> nn.Module:
    """A freshly initialised network for images of this shape; a function of the recipe's seed.

    What the recipe freezes is frozen; what it starts from is put in by `transfer.begin`.
    """
    torch.manual_seed(recipe.seed)
    spec = recipe.model
    model = build_model(
        spec.name,
        classes=len(images.classes),
        channels=images.x.shape[1],
        image_size=images.x.shape[2],
        mean=spec.mean,
        std=spec.std,
        **spec.options,
    )
    if spec.norm_momentum is not None:
        set_momentum(model, spec.norm_momentum)
    if recipe.build_method().auxiliary:
        add_aux(model)
    groups = spec.aux_groups or spec.norm_groups
    if not spec.norm_groups == groups == 1 or spec.norms == "synced":
        group_norms(model, spec.norm_groups, groups)
    if spec.norms == "synced":
        sync_norms(model)
    if spec.freeze:
        freeze(behind_normalize(model), spec.freeze, len(images.classes))
    return model


def planned(recipe: Recipe, loader: Loader, method: Method, processes: int = 1) -> Plan:
    """The updates that the recipe's budget pays for; ValueError if there is none.

    method: as one of `processes` runs it.
    """
    budget, images = recipe.budget, len(loader.images)

    def update_thirds(size: int) -> list[int]:
        # what each process rounds for its part of a batch, it rounds alike
        return [processes * cost for cost in method.update_thirds(size // processes)]

    found = plan(
        loader.batch_sizes,
        update_thirds,
        budget_thirds=thirds_of(budget.passes, images) if budget.passes else None,
        data_passes=budget.data_passes,
    )
    if found.updates == 0:
        first = update_thirds(loader.batch_sizes[0])[0]
        raise ValueError(
            f"the budget pays for no update: one costs {passes_of(first, images):.3g} passes "
            f"per training image, the budget is {budget.passes or budget.data_passes:.3g}"
        )
    return found


def learner(recipe: Recipe, model: nn.Module, plan: Plan) -> Learner:
    """The engine for `model`, its schedule spanning exactly the planned updates."""
    spec, engine = recipe.optimizer, recipe.engine
    highest = spec.rate(recipe.data.batch_size)
    optimizer = build_optimizer(
        model,
        spec.name,
        learning_rate=highest,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
        decay=spec.decay,
        fallback=spec.fallback,
        layerwise=spec.layerwise,
        bias_correction=spec.bias_correction,
        weight_norm_clip=spec.weight_norm_clip,
    )
    if recipe.schedule.cycle_momentum and "momentum" not in optimizer.defaults:
        raise ValueError(
            f"schedule.cycle_momentum: {spec.name} has no momentum to cycle; leave it out, or "
            "choose sgd, lars or muon"
        )
    share = _schedule(recipe.schedule)

    def settings(update: int, begun: int) -> dict[str, float]:
        now = share(update - begun, plan.updates - begun)
        rate = {"lr": highest * now}
        if recipe.schedule.cycle_momentum:
            rate["momentum"] = cycled_momentum(now)
        return rate

    return Learner(
        model,
        optimizer,
        Classification(recipe.task.label_smoothing),
        schedule=settings,
        precision=engine.precision,
        probe_norm=engine.probe_norm,
        channels_last=engine.channels_last,
        ema=engine.ema,
        seed=recipe.seed,
        gradients=engine.gradients,
    )


def _schedule(spec: ScheduleSpec) -> Schedule:
    shapes = {
        "cyclic": cyclic(spec.peak),
        "piecewise": piecewise(spec.drops, spec.factor),
        "cosine": cosine(),
        "constant": constant(),
    }
    return warmed(shapes[spec.shape], spec.warmup)
