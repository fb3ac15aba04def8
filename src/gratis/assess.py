"""Evaluating a run's checkpoint and writing what came out into its directory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from gratis import answers
from gratis.asked import Question
from gratis.balls import Ball
from gratis.data import Images
from gratis.data.images import different_classes, first_of
from gratis.detection import precision_entry
from gratis.evaluate import Robustness, check_masking, robust_accuracy
from gratis.evaluate.robustness import BATCHES_IN_A_POOL, always, pools_of
from gratis.merging import merge, merge_checks, supersede
from gratis.names import spell
from gratis.origins import keep_origins
from gratis.recipe import Recipe, from_plain
from gratis.run import Run
from gratis.setting import network, pick_device
from gratis.training_data import AnyImages, load_split
from gratis.unfinished import SAMPLE, Unfinished, fingerprint, sample_of
from gratis.weights import weights_of

PICTURES = 8
OTHER_IMAGES = (
    "the test images are not, to the bit, those of earlier evaluations: figures may not compare"
)

Progress = Callable[[str, int, int, str], None]
"""(stage, done, total, note): called often, so that a caller can show how far things are."""


def nowhere(stage: str, done: int, total: int, note: str) -> None:
    """Progress that nobody watches."""


def evaluate_run(
    run: Run,
    asked: Question,
    progress: Progress = nowhere,
    images: Images | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[dict[str, Any]]:
    """Answer `asked` for a run, merge the answers into its results.json and return them.

    images: the test split where it is at hand; else it is loaded as the run's recipe says.
    share: (rank, world) of a process that shares the images with others, through the run's
    directory. The first alone makes the masking checks and writes; the others return no answers.
    The same attack, threat, images (to the bit) and checkpoint as an earlier evaluation replaces
    it. One that was interrupted goes on with the pool of images that it was at.
    """
    recipe = from_plain(run.recipe)
    state, warnings = run.load_checkpoint(asked.checkpoint)
    images = split_for(recipe, state, images)
    results = described(run, recipe, images, state, asked.checkpoint, warnings)
    origin = answers.origin(recipe, images, results.get("warnings", []))
    if asked.limit is not None:
        images = first_of(images, asked.limit)
    device = pick_device(recipe.engine.device)
    model = trained(recipe, images, state).to(device)
    if recipe.engine.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if asked.detects:
        if share[0]:
            return []  # one process is enough
        of = (asked.checkpoint, state["updates"])
        found = precision_entry(model, images, recipe, of, partial(progress, "evaluate")) | origin
        run.write_results(results | {"detection": found})
        return [found]
    if recipe.data.stored is None:  # else they may be more than a device holds; batches move
        images = images.to(device)
    weights = {"update": state["updates"], "weights": fingerprint(model)}
    setting = _Setting(run, asked, recipe, model, images, weights | origin, progress, share)
    if setting.rank:
        for ball in asked.balls:
            setting.answer_share(ball)
        return []
    given = []
    for ball in asked.balls:
        given += setting.under(ball, results)
    run.write_results(results)
    for unfinished in setting.unfinished:
        unfinished.done()
    return given


def described(
    run: Run,
    recipe: Recipe,
    images: Images,
    state: dict[str, Any],
    checkpoint: str,
    warnings: list[str],
) -> dict[str, Any]:
    """The run's results.json, begun if there is none, with what a checkpoint says of itself.

    images: all of the test split.  state, warnings: of the checkpoint of that name, and of
    reading it.
    """
    results = run.results or answers.header(run, recipe, images)
    supersede(results, checkpoint, state["updates"])
    results.pop("warnings", None)
    if results["data"]["fingerprint"] != images.fingerprint:
        warnings = [*warnings, OTHER_IMAGES]
        if "root" not in run.places:  # the recipe's own images have changed, and are asked about
            keep_origins(results)
            results["data"] = answers.header(run, recipe, images)["data"]
    if warnings:
        results["warnings"] = warnings
    if "given" in state:
        results |= {"method": state["given"]["model"], "given": state["given"]}
    if state.get("start") is not None:
        results["start"] = state["start"]
    if state.get("pseudo") is not None:
        results["pseudo_labels"] = state["pseudo"]["record"]
    # what the run cost, whichever of its checkpoints is evaluated
    last = run.load_checkpoint("last")[0]
    results["budget"], results["finished"] = last["budget"], last.get("done", True)
    return results


class _Setting:
    """One model of a run and the images that it is evaluated on."""

    def __init__(
        self,
        run: Run,
        asked: Question,
        recipe: Recipe,
        model: nn.Module,
        images: Images,
        of: dict[str, Any],
        progress: Progress,
        share: tuple[int, int],
    ) -> None:
        self.run, self.asked, self.recipe, self.progress = run, asked, recipe, progress
        self.model, self.images, self.of = model, images, of
        self.sample = sample_of(model, images.pixels(slice(SAMPLE)))
        self.batch_size = recipe.evaluation.together(recipe.data.batch_size, recipe.engine.parts)
        self.unfinished: list[Unfinished] = []
        self.rank, self.world = share

    def under(self, ball: Ball, results: dict[str, Any]) -> list[dict[str, Any]]:
        """Evaluate under one ball; entries go into `results`, files into the run's directory."""
        found = self._found(ball)
        of = answers.about(ball, self.images, self.asked.checkpoint) | self.of
        alone = self.asked.alone or len(found.attacks) == 1
        each = answers.each(found, ball, len(self.images.classes), of)
        entries = list(each) if alone else [answers.in_turn(found, of)]
        if not self.run.pictures() or ball is self.asked.balls[0]:
            answers.keep_pictures(
                self.run, found, entries[-1], ball, self.images, self.asked.checkpoint
            )
        answers.keep_per_image(self.run, found, entries)
        if self.asked.keep_points:
            answers.keep_points(self.run, found, entries, self.images)
        for entry in entries:
            merge(results, "evaluations", entry)
        if alone and len(found.attacks) > 1:
            merge(results, "unions", answers.union(found, of))
        if self.asked.checks != "none":
            other = self.asked.surrogate
            checked = {
                **of,
                "judged": list(found.attacks),
                **({} if other is None else {"surrogate": other.path.name}),
                **self._checked(found, ball),
            }
            merge_checks(results, checked)
        return entries

    def answer_share(self, ball: Ball) -> None:
        """Attack the pools of images that are this process's among several; keep the answers."""
        if self.rank < self._pools:
            self._robustness(ball, lambda place: place % self.world == self.rank)

    @property
    def _pools(self) -> int:
        return pools_of(len(self.images), self.batch_size)

    def _found(self, ball: Ball) -> Robustness:
        if self.world > 1:
            self.answer_share(ball)
            # what then still lacks is answered here
            self._unfinished(ball).wait_for(self._pools, self.recipe.engine.patience_seconds)
        return self._robustness(ball)

    def _unfinished(self, ball: Ball) -> Unfinished:
        asked = self.asked
        return Unfinished.of(
            self.run.unfinished,
            {
                "weights": self.of["weights"],
                "attacks": asked.attacks,
                "ball": repr(ball),
                "seed": self.recipe.seed,
                "images": [self.images.fingerprint, len(self.images), self.batch_size],
                "pool": BATCHES_IN_A_POOL,
                "alone": asked.alone,
                "points": asked.keep_points,
                "torch": torch.__version__,
                "gratis": version("gratis"),
            },
            self.sample,
        )

    def _robustness(self, ball: Ball, turn: Callable[[int], bool] = always) -> Robustness:
        asked, unfinished = self.asked, self._unfinished(ball)
        if unfinished.directory not in [known.directory for known in self.unfinished]:
            self.unfinished.append(unfinished)
        note = f"{', '.join(asked.attacks)} at {ball.norm} {spell(ball.eps)}"
        count = len(self.images)
        self.progress("evaluate", 0, count, note)
        return robust_accuracy(
            self.model,
            self._batches(),
            asked.attacks,
            ball=ball,
            seed=self.recipe.seed,
            alone=asked.alone,
            examples=PICTURES,
            points=asked.keep_points,
            outcomes=unfinished,
            turn=turn,
            progress=lambda done: self.progress("evaluate", done, count, note),
        )

    def _checked(self, found: Robustness, ball: Ball) -> dict[str, Any]:
        """The masking checks that are worth their cost beside this evaluation, or all."""
        full = self.asked.checks == "full" or "autoattack" in found.attacks
        note = f"masking checks at {ball.norm} {spell(ball.eps)}"
        checks = check_masking(
            self.model,
            self._batches,
            found,
            ball=ball,
            seed=self.recipe.seed,
            full=full,
            alone=self.asked.alone,
            history=self._history() or None,
            surrogate=self._surrogate(),
            progress=lambda done, total, id: self.progress(
                "check", done, total, f"{note}: {id}" if done else note
            ),
        )
        count = len(checks.findings)
        self.progress("check", count, count, note)
        return checks.plain()

    def _history(self) -> list[float]:
        """Robust accuracy at the checks of training, up to these weights."""
        checks = [record for record in self.run.log() if record["kind"] == "check"]
        return [r["robust_accuracy"] for r in checks if r["update"] <= self.of["update"]]

    def _surrogate(self) -> nn.Module | None:
        """Another run's network for the same images."""
        if self.asked.surrogate is None:
            return None
        recipe = from_plain(self.asked.surrogate.recipe)
        state = self.asked.surrogate.whole_checkpoint(recipe.evaluation.checkpoint)
        device = next(self.model.parameters()).device
        return trained(recipe, self.images, state).to(device).eval()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.images), self.batch_size):
            chosen = slice(first, first + self.batch_size)
            yield self.images.pixels(chosen), self.images.y[chosen]


def split_for(recipe: Recipe, state: dict[str, Any], images: Images | None = None) -> Images:
    """The test split, loaded where it is not at hand, with the classes that a checkpoint's network
    was trained on: where they are counted from labels, a test set may lack the last ones.
    ValueError where they are others, for labels would mean something else.
    """
    if images is None:
        images = load_split(recipe.data, "test")
    classes = tuple(state.get("classes", images.classes))  # earlier versions did not keep them
    if classes[: len(images.classes)] != images.classes:
        raise ValueError(
            f"{images.name}: the classes are no longer those that the network was trained on: "
            + different_classes("training", classes, images.split, images.classes)
        )
    return images if classes == images.classes else replace(images, classes=classes)


def trained(recipe: Recipe, images: AnyImages, state: dict[str, Any]) -> nn.Module:
    """The network with a checkpoint's weights, the averaged ones where there are any."""
    model = network(recipe, images)
    try:
        model.load_state_dict(weights_of(state))
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit the recipe's network: {error}") from error
    return model
