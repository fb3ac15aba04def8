"""Evaluating a run's checkpoint and writing what came out into its directory."""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gratis.attacks import build_attack
from gratis.balls import Ball
from gratis.budget import passes_of
from gratis.data import Images
from gratis.evaluate import Robustness, clopper_pearson, robust_accuracy
from gratis.names import spell, spell_method
from gratis.recipe import Recipe, from_plain
from gratis.run import Run
from gratis.setting import load_split, network, pick_device

SCHEMA = 1
PICTURES = 8

Progress = Callable[[str, int, int, str], None]
"""(stage, done, total, note): called often, so that a caller can show how far things are."""


def nowhere(stage: str, done: int, total: int, note: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Question:
    """What to evaluate: attacks under each ball, on the first `limit` test images."""

    attacks: tuple[str, ...]
    balls: tuple[Ball, ...]
    limit: int | None
    checkpoint: str

    def answered_by(self, results: dict[str, Any] | None) -> bool:
        """Whether every attack under every ball stands in results.json."""
        given = {
            (entry["attack"], entry["threat"]["norm"], entry["threat"]["eps"], entry["checkpoint"])
            for entry in (results or {"evaluations": []})["evaluations"]
        }
        return all(
            (attack, ball.norm, ball.eps, self.checkpoint) in given
            for attack in self.attacks
            for ball in self.balls
        )


def question(recipe: Recipe) -> Question:
    """The evaluation that the recipe asks for."""
    wanted = recipe.evaluation
    return Question(
        wanted.attacks, tuple(recipe.evaluation_balls()), wanted.limit, wanted.checkpoint
    )


def evaluate_run(
    run: Run, asked: Question, progress: Progress = nowhere, images: Images | None = None
) -> list[dict[str, Any]]:
    """Answer `asked` for a run, merge the answers into its results.json and return them.

    images: the test split where it is at hand; else it is loaded as the run's recipe says.
    The same attack, threat, images and checkpoint as an earlier evaluation replaces it.
    """
    recipe = from_plain(run.recipe)
    state, warnings = run.load_checkpoint(asked.checkpoint)
    if images is None:
        images = load_split(recipe.data, "test")
    results = run.results or header(run, recipe, images)
    if asked.limit is not None:
        images = _first(images, asked.limit)
    device = pick_device(recipe.engine.device)
    model = trained(recipe, images, state).to(device)
    if recipe.engine.channels_last:
        model = model.to(memory_format=torch.channels_last)
    images = images.to(device)
    # what the run cost, whichever of its checkpoints is evaluated
    results["budget"] = run.load_checkpoint("last")[0]["budget"]
    answers = []
    for ball in asked.balls:
        found = _evaluation(model, images, asked.attacks, ball, recipe, progress)
        answers += list(_entries(found, ball, images, asked, state))
        if not run.pictures() or ball is asked.balls[0]:
            _keep_pictures(run, found, ball, images, asked)
        _keep_per_image(run, found, answers[-len(asked.attacks) :])
    for answer in answers:
        _merge(results["evaluations"], answer)
    if warnings:
        results["warnings"] = warnings
    run.write_results(results)
    return answers


def _first(images: Images, limit: int) -> Images:
    """The first images of a test split; ValueError if they say nothing of the other classes."""
    chosen = images.select(torch.arange(min(limit, len(images))))
    if len(chosen) >= 10 * len(images.classes) and int(chosen.y.min()) == int(chosen.y.max()):
        raise ValueError(
            f"the first {len(chosen)} {images.split} images of {images.name} are all of class "
            f"{images.classes[int(chosen.y[0])]}: shuffle the data, or evaluate all of it"
        )
    return chosen


def trained(recipe: Recipe, images: Images, state: dict[str, Any]) -> nn.Module:
    """The network with a checkpoint's weights, the averaged ones where there are any."""
    model = network(recipe, images)
    if state["averaged"] is not None:
        prefix = "module."
        weights = {
            key.removeprefix(prefix): value
            for key, value in state["averaged"].items()
            if key.startswith(prefix)
        }
    else:
        weights = state["model"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit the recipe's network: {error}") from error
    return model


def header(run: Run, recipe: Recipe, images: Images) -> dict[str, Any]:
    """results.json before any evaluation."""
    device = pick_device(recipe.engine.device)
    return {
        "schema": SCHEMA,
        "versions": {
            "gratis": version("gratis"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "seed": recipe.seed,
        "recipe_sha256": run.recipe_sha256,
        "data": {
            "name": images.name,
            "split": images.split,
            "fingerprint": images.fingerprint,
            **({"note": images.note} if images.note else {}),
        },
        "method": spell_method(recipe.method),
        "evaluations": [],
    }


def _cpu() -> str:
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def _evaluation(
    model: nn.Module,
    images: Images,
    attacks: Sequence[str],
    ball: Ball,
    recipe: Recipe,
    progress: Progress,
) -> Robustness:
    size = recipe.evaluation.batch_size or 2 * recipe.data.batch_size

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(images), size):
            chosen = slice(first, first + size)
            yield images.pixels(chosen), images.y[chosen]

    note = f"{', '.join(attacks)} at {ball.norm} {spell(ball.eps)}"
    progress("evaluate", 0, len(images), note)
    return robust_accuracy(
        model,
        batches(),
        attacks,
        ball=ball,
        seed=recipe.seed,
        examples=PICTURES,
        progress=lambda done: progress("evaluate", done, len(images), note),
    )


def _entries(
    found: Robustness, ball: Ball, images: Images, asked: Question, state: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    count = len(found.robust)
    for place, name in enumerate(found.attacks, 1):
        meter = found.meters[place]
        yield {
            "attack": name,
            "parameters": build_attack(name).parameters(ball),
            "threat": {"norm": ball.norm, "eps": ball.eps},
            "checkpoint": asked.checkpoint,
            "update": state["updates"],
            "images": {"split": images.split, "start": 0, "count": count},
            "clean": _share(found.correct[:, 0]),
            "robust": _share(found.correct[:, place]),
            "seconds": found.seconds[0] + found.seconds[place],
            "forwards": found.meters[0].forwards + meter.forwards + meter.probes,
            "backwards": meter.probes,
            "passes": passes_of(found.meters[0].thirds + meter.thirds, count),
        }


def _share(correct: Tensor) -> dict[str, Any]:
    count, total = int(correct.sum()), len(correct)
    return {
        "correct": count,
        "accuracy": count / total,
        "ci95": list(clopper_pearson(count, total)),
    }


def _protocol(entry: dict[str, Any]) -> str:
    threat, images = entry["threat"], entry["images"]
    return (
        f"{entry['attack']} {threat['norm']} {threat['eps']!r} {entry['checkpoint']} "
        f"{images['split']} {images['start']}-{images['start'] + images['count']}"
    )


def _merge(entries: list[dict[str, Any]], answer: dict[str, Any]) -> None:
    def same(entry: dict[str, Any]) -> bool:
        return _protocol(entry) == _protocol(answer) and entry["parameters"] == answer["parameters"]

    entries[:] = [answer if same(entry) else entry for entry in entries]
    if answer not in entries:
        entries.append(answer)


def _keep_per_image(run: Run, found: Robustness, entries: list[dict[str, Any]]) -> None:
    arrays = {}
    for place, entry in enumerate(entries, 1):
        name = _protocol(entry).replace(" ", "_").replace("/", "over")
        entry["per_image"] = name
        arrays[f"{name}.clean"] = found.correct[:, 0].numpy()
        arrays[f"{name}.robust"] = found.correct[:, place].numpy()
    run.write_per_image(arrays)


def _keep_pictures(
    run: Run, found: Robustness, ball: Ball, images: Images, asked: Question
) -> None:
    assert found.examples is not None
    run.write_pictures(
        {name: tensor.numpy() for name, tensor in vars(found.examples).items()}
        | {
            "classes": np.array(images.classes),
            "attack": np.array(asked.attacks[-1]),
            "norm": np.array(ball.norm),
            "eps": np.array(ball.eps),
            "checkpoint": np.array(asked.checkpoint),
        }
    )
