"""From a recipe to the things that it names: device, network, batches, learner, plan."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gratis.budget import Plan, passes_of, plan, plan_phases, thirds_of
from gratis.data import Images, Loader, StreamLoader
from gratis.distributed import Processes
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
    knotted,
    piecewise,
    warmed,
)
from gratis.passes import Method
from gratis.precision import named
from gratis.recipe import Recipe
from gratis.sections import Data
from gratis.sections import Schedule as ScheduleSpec
from gratis.tasks import Classification, Detection, Task
from gratis.training_data import AnyImages, TrainingData

AnyLoader = Loader | StreamLoader


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


def parts_of_batch(recipe: Recipe, processes: int, begun: int | None = None) -> int:
    """In how many equal parts each batch is learned; ValueError where they cannot be.

    begun: the parts that the run began with, if it goes on.
    """
    parts = begun or recipe.engine.parts or processes
    for size in (stage.batch_size for stage in recipe.stages):
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


def build_loaders(
    recipe: Recipe,
    data: TrainingData,
    device: torch.device,
    *,
    take: Callable[[int], Tensor] = torch.arange,
    world: int = 1,
) -> list[AnyLoader]:
    """Each phase's batches of the training images on `device`; see Loader for the others."""
    return [_loader(recipe, stage, data, device, take, world) for stage in recipe.stages]


def _loader(
    recipe: Recipe,
    stage: Data,
    data: TrainingData,
    device: torch.device,
    take: Callable[[int], Tensor],
    world: int,
) -> AnyLoader:
    images = data.training
    common: dict[str, Any] = {
        "seed": recipe.seed,
        "augment": stage.augment,
        "drop_last": stage.drop_last,
        "device": device,
        "take": take,
        "world": world,
    }
    if isinstance(images, Images):
        return Loader(images, stage.batch_size, unlabelled=data.unlabelled, **common)
    assert stage.stored is not None
    assert stage.image_size is not None
    return StreamLoader(
        replace(images, source=data.sources[stage.stored], image_size=stage.image_size),
        stage.batch_size,
        workers=stage.workers or os.cpu_count() or 1,
        **common,
    )


def rows_taken(
    processes: Processes, method: Callable[[], Method], shares: int
) -> Callable[[int], Tensor]:
    """`take` of `build_loaders`: our rows of a batch, of which each process learns `shares` parts.

    method: tells the one that a batch is for, which may be another later in a run.
    """
    return lambda size: processes.rows(method().parts(size // processes.world), shares=shares)


def network(recipe: Recipe, images: AnyImages, parts: int = 1) -> nn.Module:
    """A freshly initialised network for images of this shape; a function of the recipe's seed.

    parts: in how many each batch is learned, see `parts_of_batch`.

    What the recipe freezes is frozen; what it starts from is put in by `transfer.begin`.
    """
    torch.manual_seed(recipe.seed)
    spec = recipe.model
    model = build_model(
        spec.name,
        classes=len(images.classes),
        channels=images.shape[0],
        # whatever the size of the images that it will be asked about
        image_size=recipe.data.image_size or images.shape[1],
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
        group_norms(model, spec.norm_groups, _aux_groups(recipe, parts))
    if spec.norms == "synced":
        sync_norms(model)
    if spec.freeze:
        freeze(behind_normalize(model), spec.freeze, len(images.classes))
    return model


def planned(
    recipe: Recipe,
    loaders: Sequence[AnyLoader],
    method: Method,
    processes: int = 1,
    parts: int | None = None,
) -> Plan:
    """The updates that the recipe's budget pays for; ValueError if there is none, or if a batch is
    too small for the norms.

    loaders: each phase's.  method: as one of `processes` runs it.  parts: in how many each batch
    is learned, as many as there are processes unless given.
    """
    budget, images = recipe.budget, len(loaders[0].images)
    smallest = min(size for loader in loaders for size in loader.batch_sizes)
    parts = parts or processes
    of_part, groups = smallest // parts, _aux_groups(recipe, parts)
    attacked = method.parts(smallest // processes)[-1]  # of one part, the last
    if of_part < recipe.model.norm_groups:
        raise ValueError(_too_few("norm_groups", of_part, recipe.model.norm_groups))
    if method.auxiliary and 0 < attacked < groups:
        raise ValueError(_too_few("aux_groups", attacked, groups))
    paid = thirds_of(budget.passes, images) if budget.passes else None

    def update_thirds(size: int) -> list[int]:
        # what each process rounds for its part of a batch, it rounds alike
        return [processes * cost for cost in method.update_thirds(size // processes)]

    if recipe.phases:
        found = plan_phases(
            [loader.batch_sizes for loader in loaders],
            [phase.share for phase in recipe.phases],
            update_thirds,
            budget_thirds=paid,
            data_passes=budget.data_passes,
        )
    else:
        found = plan(
            loaders[0].batch_sizes,
            update_thirds,
            budget_thirds=paid,
            data_passes=budget.data_passes,
        )
    if found.updates == 0:
        first = update_thirds(loaders[0].batch_sizes[0])[0]
        raise ValueError(
            f"the budget pays for no update: one costs {passes_of(first, images):.3g} passes "
            f"per training image, the budget is {budget.passes or budget.data_passes:.3g}"
        )
    return found


def _too_few(key: str, images: int, groups: int) -> str:
    return (
        f"model.{key}: {images} images, which is what the smallest batch of a data pass has for "
        f"these norms, cannot fill {groups} groups; set data.drop_last=true, or ask for fewer"
    )


def _aux_groups(recipe: Recipe, parts: int) -> int:
    """In how many groups auxiliary norms see each of a batch's parts."""
    spec = recipe.model
    # as on so many devices: parts that are each on one are groups already
    return max(1, spec.aux_groups // parts) if spec.aux_groups else spec.norm_groups


def task_of(recipe: Recipe) -> Task:
    """What the recipe's network is trained for."""
    if recipe.detects:
        return Detection(recipe.task.attack)
    return Classification(recipe.task.label_smoothing)


def learner(recipe: Recipe, model: nn.Module, plan: Plan) -> Learner:
    """The engine for `model`, its schedule spanning exactly the planned updates."""
    spec, engine = recipe.optimizer, recipe.engine
    if engine.compile != "off" and recipe.method["name"] == "yopo":
        raise ValueError(
            f"engine.compile={engine.compile}: yopo watches what goes into the first layer, which "
            "compiled code does not show; leave it off"
        )
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
        since = plan.place(begun)
        now = share(plan.place(update) - since, plan.updates - since)
        rate = {"lr": highest * now}
        if recipe.schedule.cycle_momentum:
            rate["momentum"] = cycled_momentum(now)
        return rate

    return Learner(
        model,
        optimizer,
        task_of(recipe),
        schedule=settings,
        precision=named(engine.precision, next(model.parameters()).device),
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
        **({"knots": knotted(spec.knots)} if spec.knots else {}),
    }
    return warmed(shapes[spec.shape], spec.warmup)
