"""What a checkpoint of a run holds, and how a run goes on from one."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gratis.budget import Meter, passes_of
from gratis.data import Loader
from gratis.data.images import different_classes
from gratis.pseudo import pseudo_labels
from gratis.setting import AnyLoader
from gratis.transfer import begin

if TYPE_CHECKING:
    from gratis.training.loop import Training


def state_of(run: "Training") -> dict[str, Any]:
    """All that `take_up` needs to go on, bitwise on as many processes; tensors and plain values."""
    others = run.loaders[0].unlabelled
    state = run.learner.state() | {
        "parts": run.parts,
        "classes": list(run.loaders[0].images.classes),
        "learned_from": {
            "images": run.images,
            "fingerprint": run.fingerprint,
            "unlabelled": None
            if others is None
            else {"images": len(others), "fingerprint": others.fingerprint},
        },
        "spent": {
            key: run.processes.world * count for key, count in vars(run.learner.spent).items()
        },
        "start": run.start,
        "pseudo": run.pseudo,
        "method": {k: run.processes.gather(v) for k, v in run.method.state().items()},
        "recovery": run.recovery.state() if run.recovery else None,
        "early_stop": run.early_stop.state() if run.early_stop else None,
        "random": torch.get_rng_state(),
        "checked": vars(run.checked).copy(),
        "best": run.best,
        "epoch": run.epoch,
        "batch": run.batch,
        "totals": list(run.journal.totals),
        "stretch": list(run.journal.stretch),
        "seconds": run.seconds,
        "stopped": run.stopped,
        "done": run.done,
        "budget": {
            "images": run.images,
            "predicted_passes": passes_of(run.plan.thirds, run.images),
            "metered_passes": run.passes(run.learner.spent.thirds),
            "papers_passes": run.processes.world * run.learner.spent.papers / run.images,
            "guard_passes": passes_of(run.checked.thirds, run.images),
            "updates": run.learner.updates,
            "data_passes": run.data_passes,
            "seconds": run.seconds,
        },
    }
    if run.learner.device.type == "cuda":
        state["random_cuda"] = torch.cuda.get_rng_state(run.learner.device)
    return state


def bring_in(
    run: "Training", loader: AnyLoader, saved: dict[str, Any] | None, model: nn.Module
) -> list[str]:
    """Weights to start from and pseudo-labels: taken from other runs once, then kept.

    Gives what to warn of where images are not those that the run began with; ValueError where it
    cannot go on with them.
    """
    warnings = []
    if saved is None:
        run.start = begin(run.recipe, model, len(loader.images.classes))
        run.pseudo = pseudo_labels(run.recipe, loader, run.processes)
    else:
        run.start, run.pseudo = saved["start"], saved["pseudo"]
        warnings = _other_images(run, saved)
    if run.pseudo is not None:
        assert isinstance(loader, Loader)  # streamed images all have their labels
        loader.label(run.pseudo["labels"])
    return warnings


def take_up(
    run: "Training", state: dict[str, Any] | None, warnings: list[str], remarks: list[str]
) -> None:
    """Go on from the last checkpoint `state`, if there is one; else note `remarks` on the data."""
    processes, device = run.processes, run.learner.device
    if state is None:
        if run.directory.log():
            _note_resumed(run)
        if run.recovery is not None:
            run.recovery.begin(run.learner)
        if run.start is not None:
            run.journal.event("start", update=0, **run.start)
        if run.pseudo is not None:
            run.journal.event("pseudo-labels", update=0, **run.pseudo["record"])
        for remark in remarks:
            run.journal.event("warning", message=remark)
        _check_together(run)
        return
    run.directory.set_aside_damaged()
    for message in warnings:
        run.journal.event("warning", message=message, update=state["updates"])
    # the processes that spent it may have been more or fewer
    spent = {key: count // processes.world for key, count in state["spent"].items()}
    run.learner.load_state(state | {"spent": spent})
    if run.recovery is not None:
        run.recovery.load_state(state["recovery"])
        run.method = run.recovery.again(run.method)
    if run.early_stop is not None:
        run.early_stop.load_state(state["early_stop"])
    ours = {k: processes.part(v).to(device) for k, v in state["method"].items()}
    run.method.load_state(ours)
    torch.set_rng_state(state["random"])
    if "random_cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["random_cuda"], device)
    run.checked = Meter(**state["checked"])
    run.best = tuple(state["best"])
    run.epoch, run.batch, run.seconds = state["epoch"], state["batch"], state["seconds"]
    run.journal.totals, run.journal.stretch = state["totals"], state["stretch"]
    run.stopped, run.done = state["stopped"], state["done"]
    if not run.done:
        _note_resumed(run)
    _check_together(run)


def _other_images(run: "Training", state: dict[str, Any]) -> list[str]:
    """A warning where the training images are decoded otherwise; ValueError where they are others:
    held-out ones would be among those learned from, and the plan is another's.
    """
    images = run.loaders[0].images
    before, classes = state.get("learned_from"), tuple(state.get("classes", images.classes))
    if classes != images.classes:
        raise ValueError(
            f"{images.name}: the run began with other classes: "
            + different_classes("the checkpoint", classes, images.split, images.classes)
        )
    warnings = _other_unlabelled(run, before or {})
    if before is None:  # of an earlier version, which kept nothing of them
        return [*warnings, *_as_before(run)]
    if before["images"] != run.images:
        raise ValueError(
            f"{images.name}: the run began with {before['images']:,} training images, now there "
            f"are {run.images:,}; put those back, or begin anew with another --out"
        )
    if before["fingerprint"] != run.fingerprint:
        warnings.append("the training images are not, to the bit, those that the run began with")
    return warnings


def _other_unlabelled(run: "Training", before: dict[str, Any]) -> list[str]:
    """As `_other_images`, for images without labels; ValueError as well where pseudo-labels, which
    are kept by the images' places, would go onto others.
    """
    images = run.loaders[0].unlabelled
    if images is None:
        return []
    if "unlabelled" not in before:  # of an earlier version
        began = (run.directory.recipe.get("data") or {}).get("unlabelled") or {}
        now = run.recipe.data.unlabelled
        _require_place("data.unlabelled.root", began.get("root"), now.root if now else None)
        return []
    known, otherwise = before["unlabelled"], "put those back, or begin anew with another --out"
    if known["images"] != len(images):
        raise ValueError(
            f"data.unlabelled: the run began with {known['images']:,} images without labels, now "
            f"there are {len(images):,}; {otherwise}"
        )
    if known["fingerprint"] == images.fingerprint:
        return []
    message = "the images without labels are not, to the bit, those that the run began with"
    if run.pseudo is not None:
        raise ValueError(
            f"data.unlabelled: {message}, so the pseudo-labels in its checkpoint may be those of "
            f"others; {otherwise}"
        )
    return [message]


def _require_place(key: str, began: str | None, now: str | None) -> None:
    """ValueError where images that a checkpoint cannot tell from others lie elsewhere by now."""
    if began != now:
        raise ValueError(
            f"{key}: the run began with {began}, by a version that did not keep which images it "
            "learned from; they must lie there for it to go on"
        )


def _as_before(run: "Training") -> list[str]:
    """What to warn of where a checkpoint cannot tell; ValueError where images lie elsewhere."""
    root = (run.directory.recipe.get("data") or {}).get("root")
    _require_place("data.root", root, run.recipe.data.root)
    if run.method.auxiliary and run.parts > 1 and (run.recipe.model.aux_groups or 1) > 1:
        return [
            "auxiliary norms had model.aux_groups in each of a batch's parts when the run began; "
            "from here on all parts together have so many"
        ]
    return []


def _note_resumed(run: "Training") -> None:
    """Log where the run goes on, with how many processes, and what it does over again."""
    logged = [r["update"] for r in run.directory.log() if r["kind"] == "step"]
    run.journal.event(
        "resumed",
        update=run.learner.updates,
        lost_updates=max(0, max(logged, default=0) - run.learner.updates),
        processes=run.processes.world,
    )


def _check_together(run: "Training") -> None:
    """ValueError where processes would go on from different checkpoints."""
    here = torch.tensor([run.learner.updates], device=run.learner.device)
    found = sorted(set(run.processes.gather(here).tolist()))
    if len(found) > 1:
        raise ValueError(
            f"the processes found {run.directory.path} at updates {found}; it must lie on a "
            "file system that all of them see"
        )
