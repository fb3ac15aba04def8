"""The learning-rate range test: raise the rate from update to update until training diverges.

Wong 2020 (section 4.2, appendix B) chose the highest rate of every schedule as the largest one
that does not diverge in such a test.
"""

import json
import math
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from gratis.assess import Progress, nowhere
from gratis.budget import Plan, passes_of
from gratis.data import Loader
from gratis.distributed import Processes
from gratis.figures import Array, Curve, curves_svg
from gratis.methods.in_parts import in_parts
from gratis.names import spell_method
from gratis.passes import Batch
from gratis.pseudo import pseudo_labels
from gratis.recipe import Recipe
from gratis.report import environment
from gratis.setting import (
    build_loaders,
    learner,
    network,
    parts_of_batch,
    pick_device,
    rows_taken,
)
from gratis.training_data import training_data
from gratis.transfer import begin

RESULT, PAGE = "lr_range.json", "lr_range.html"
FEWEST = 50
"""Updates, below which a test says nothing."""


@dataclass
class RateRange:
    """Rates and losses of a test over `updates` updates from rate `low` to `high`, as they come.

    The rate rises by the same factor at every update, since what is sought is an order of
    magnitude. `smoothed` is the exponential average of the losses over `window` updates,
    corrected for its start. `passes` were spent per training image.

    Diverged means: a loss is not finite, or the smoothed loss has climbed back from its lowest
    half the way to the first losses, those of a network that knows nothing: half of what was
    learned is undone. A climb of less than 1/10 of the first losses is taken for noise. A
    multiple of the lowest loss, as in other range tests, would not do: robust training may lower
    the loss by a fifth, and networks with batch norms go back to chance rather than to infinity.
    """

    low: float
    high: float
    updates: int
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    diverged: bool = False
    passes: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(
                f"the rate cannot rise from {self.low:g} to {self.high:g}; "
                "give positive numbers, the first one smaller"
            )
        if self.updates < FEWEST:
            raise ValueError(f"{self.updates} updates are too few to tell; give {FEWEST} or more")

    @property
    def window(self) -> int:
        """1/20 of the test, so that it spans the same ratio of rates at any length; 10 at least,
        against the noise of batches.
        """
        return max(10, self.updates // 20)

    def rate(self, update: int) -> float:
        """The rate of an update counted from 0."""
        rise = math.log(self.high / self.low) * update / (self.updates - 1)
        return min(self.low * math.exp(rise), self.high)

    def add(self, loss: float) -> None:
        """The training loss of the next update, measured before its step."""
        keep = 1 - 1 / self.window
        past = len(self.losses)
        before = self.smoothed[-1] * (1 - keep**past) if past else 0.0
        self.rates.append(self.rate(past))
        self.losses.append(loss)
        self.smoothed.append((keep * before + (1 - keep) * loss) / (1 - keep ** (past + 1)))
        if not math.isfinite(loss) or self.smoothed[-1] > self.ceiling:
            self.diverged = True

    @property
    def ceiling(self) -> float:
        """The smoothed loss above which training has diverged."""
        if len(self.losses) <= self.window:
            return 2 * self.losses[0]
        # several, as a method's first examples may be milder than those to come (Free's are);
        # but a lowest rate that is itself too high must not set the standard
        first = min(median(self.losses[: self.window]), 2 * self.losses[0])
        lowest = min(filter(math.isfinite, self.smoothed[self.window - 1 :]), default=first)
        return lowest + max((first - lowest) / 2, first / 10)

    @property
    def highest(self) -> float | None:
        """The largest rate before divergence: `high` where there was none (so at least that),
        None where the first step did it.

        Divergence begins with the first of the losses above `ceiling` that lead up to where it
        was noticed. A loss is that of the weights before the update, so the step to blame is the
        one of the update before, and the largest harmless rate is the one before that.
        """
        if not self.diverged:
            return self.rates[-1]
        begun = len(self.losses) - 1
        while begun and not self.losses[begun - 1] <= self.ceiling:
            begun -= 1
        return self.rates[begun - 2] if begun >= 2 else None

    @property
    def lowest(self) -> tuple[float, float] | None:
        """(rate, smoothed loss) where the smoothed loss was lowest; None if none was finite."""
        finite = [place for place in enumerate(self.smoothed) if math.isfinite(place[1])]
        if not finite:
            return None
        update, loss = min(finite, key=lambda place: place[1])
        return self.rates[update], loss

    @property
    def answer(self) -> str:
        """The outcome in words."""
        if not self.diverged:
            return f"at least {self.rates[-1]:.3g}: the loss did not diverge up to there"
        if self.highest is None:
            return f"below {self.low:.3g}: training diverged at the first rate tried"
        return f"{self.highest:.3g}"


def lr_range(
    recipe: Recipe,
    *,
    low: float = 1e-4,
    high: float = 10.0,
    updates: int = 200,
    progress: Progress = nowhere,
) -> RateRange:
    """Train as `recipe` says but at a rising rate, until the loss diverges or `updates` are done.

    Method, data, parts of a batch, network, optimizer and precision are the recipe's; its
    schedule, budget and guard are not used, and momentum stays at the recipe's value. Nothing is
    written.
    Raises ValueError for unusable input.
    """
    found = RateRange(low, high, updates)
    processes = Processes(pick_device(recipe.engine.device))  # this one alone
    device, parts = processes.device, parts_of_batch(recipe, processes.world)
    data = training_data(recipe)
    method = in_parts(recipe.build_method, parts)
    take = rows_taken(processes, lambda: method, parts)
    loader = build_loaders(recipe, data, device, take=take, world=parts)[0]
    model = network(recipe, data.training, parts).to(device)
    begin(recipe, model, len(data.training.classes))
    if (pseudo := pseudo_labels(recipe, loader, processes)) is not None:
        assert isinstance(loader, Loader)  # streamed images all have their labels
        loader.label(pseudo["labels"])
    method.bind(model, loader.images.pixels(slice(1)).to(device))
    engine = learner(recipe, model, Plan(updates, 0))
    engine.schedule = lambda update, _: {"lr": found.rate(update)}
    while not found.diverged and len(found.losses) < updates:
        for x, y in loader:
            metrics = engine.fit(method, Batch(x, y), at_most=updates - len(found.losses))
            for loss in torch.stack(metrics.losses).tolist():
                if not found.diverged:
                    found.add(loss)
            note = f"rate {found.rates[-1]:.2g}, loss {found.smoothed[-1]:.3f}"
            progress("train", len(found.losses), updates, note)
            if found.diverged or len(found.losses) == updates:
                break
    found.passes = passes_of(engine.spent.thirds, len(data.training))
    return found


def write(found: RateRange, recipe: Recipe, out: Path) -> None:
    """Write lr_range.json and lr_range.html to directory `out`; ValueError if it holds anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and is not empty; nothing is overwritten: "
            "give another --out or move it away"
        )
    out.mkdir(parents=True, exist_ok=True)
    record = _record(found, recipe)
    (out / RESULT).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", "utf-8")
    page = environment().get_template("lr_range.html.j2")
    html = page.render(found=found, record=record, curve=_curve(found))
    (out / PAGE).write_text(html, "utf-8")


def _record(found: RateRange, recipe: Recipe) -> dict[str, Any]:
    lowest = found.lowest
    return {
        "answer": found.answer,
        "diverged": found.diverged,
        "largest_rate_before_divergence": found.highest,
        "lowest_smoothed_loss": lowest and {"rate": lowest[0], "loss": lowest[1]},
        "from": found.low,
        "to": found.high,
        "updates": found.updates,
        "spent_passes": found.passes,
        "rates": found.rates,
        "losses": [loss if math.isfinite(loss) else None for loss in found.losses],
        "smoothed": [loss if math.isfinite(loss) else None for loss in found.smoothed],
        "method": spell_method(recipe.method),
        "recipe": recipe.plain(),
        "versions": {
            "gratis": version("gratis"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _curve(found: RateRange) -> Markup:
    """The losses against the rate, cut off where they are far beyond the ceiling."""
    top = 1.25 * max(found.losses[0], found.ceiling)
    rates = np.array(found.rates)

    def shown(losses: list[float]) -> Array:
        return np.array([loss if loss <= top else math.nan for loss in losses])

    curves = [
        Curve(5, rates, shown(found.losses), "faint"),
        Curve(0, rates, shown(found.smoothed)),
    ]
    if found.diverged and found.highest is not None:
        place = found.rates.index(found.highest)
        curves.append(Curve(1, rates[[place]], shown(found.smoothed[place : place + 1]), "mark"))
    return curves_svg(
        "lr-range",
        f"Training loss against the learning rate. Largest rate before divergence: {found.answer}.",
        curves,
        y_label="training loss",
        x_label="learning rate",
        log_x=True,
    )
