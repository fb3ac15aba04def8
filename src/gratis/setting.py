"""From a recipe to the things that it names: device, data, network, learner, plan."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gratis.budget import Plan, passes_of, plan, thirds_of
from gratis.data import Images, Loader, hold_out, load
from gratis.learner import Learner
from gratis.nn import add_aux, build_model, group_norms, set_momentum
from gratis.optim import build_optimizer
from gratis.optim.schedules import Schedule, constant, cosine, cycled_momentum, cyclic, piecewise
from gratis.passes import Method
from gratis.recipe import Recipe
from gratis.sections import Data
from gratis.sections import Schedule as ScheduleSpec


@dataclass(frozen=True)
class TrainingData:
    training: Images
    held_out: Images
    skipped: tuple[str, ...]


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
    """The recipe's training images, less the ones held out for checks."""
    images = load_split(recipe.data, "train")
    if recipe.data.limit is not None:
        images = images.select(torch.arange(min(recipe.data.limit, len(images))))
    share = recipe.data.holdout
    training, held_out = hold_out(images, int(share) if share >= 1 else share, seed=recipe.seed)
    if recipe.data.batch_size > len(training):
        raise ValueError(
            f"data.batch_size: {recipe.data.batch_size} images a batch, but there are only "
            f"{len(training)} to train on; give a smaller batch"
        )
    return TrainingData(training, held_out, images.skipped)


def build_loader(
    recipe: Recipe,
    images: Images,
    device: torch.device,
    *,
    take: Callable[[int], Tensor] = torch.arange,
    world: int = 1,
) -> Loader:
    """The recipe's batches of `images` on `device`; see Loader for `take` and `world`."""
    return Loader(
        images,
        recipe.data.batch_size,
        seed=recipe.seed,
        augment=recipe.data.augment,
        drop_last=recipe.data.drop_last,
        device=device,
        take=take,
        world=world,
    )


def network(recipe: Recipe, images: Images) -> nn.Module:
    """A freshly initialised network for images of this shape; a function of the recipe's seed."""
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
    return (
        model if spec.norm_groups == groups == 1 else group_norms(model, spec.norm_groups, groups)
    )


def planned(recipe: Recipe, loader: Loader, method: Method) -> Plan:
    """The updates that the recipe's budget pays for; ValueError if there is none."""
    budget, images = recipe.budget, len(loader.images)

    def update_thirds(size: int) -> list[int]:
        # what each process rounds for its part of a batch, it rounds alike
        return [loader.world * cost for cost in method.update_thirds(size // loader.world)]

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
    optimizer = build_optimizer(
        model,
        spec.name,
        learning_rate=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
        decay=spec.decay,
        fallback=spec.fallback,
    )
    share = _schedule(recipe.schedule)

    def settings(update: int, begun: int) -> dict[str, float]:
        now = share(update - begun, plan.updates - begun)
        rate = {"lr": spec.learning_rate * now}
        if recipe.schedule.cycle_momentum:
            rate["momentum"] = cycled_momentum(now)
        return rate

    return Learner(
        model,
        optimizer,
        schedule=settings,
        precision=engine.precision,
        probe_norm=engine.probe_norm,
        channels_last=engine.channels_last,
        ema=engine.ema,
        seed=recipe.seed,
    )


def _schedule(spec: ScheduleSpec) -> Schedule:
    if spec.shape == "cyclic":
        return cyclic(spec.peak)
    if spec.shape == "piecewise":
        return piecewise(spec.drops, spec.factor)
    return cosine() if spec.shape == "cosine" else constant()
