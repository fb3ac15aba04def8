"""One run in the making: the loop over batches, with checks, log and checkpoints."""

import time
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from gratis import capturing, clock, compiling
from gratis.assess import Progress, nowhere
from gratis.budget import Meter, passes_of
from gratis.guard import Outcome, watchers
from gratis.journal import Journal
from gratis.methods.in_parts import in_parts
from gratis.passes import Batch
from gratis.precision import settle
from gratis.recipe import Recipe
from gratis.run import Run
from gratis.setting import (
    AnyLoader,
    build_loaders,
    learner,
    network,
    parts_of_batch,
    planned,
    rows_taken,
)
from gratis.training.continuing import bring_in, state_of, take_up
from gratis.training_data import TrainingData


class Training:
    """One run in the making: all that changes, so that it can be saved and taken up again."""

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        directory: Run,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self.recipe, self.directory, self.journal = recipe, directory, journal
        processes = self.processes = journal.processes
        directory.check_checkpoints()
        saved, warnings = directory.load_checkpoint() if directory.has_checkpoint else (None, [])
        self.parts = parts_of_batch(recipe, processes.world, saved["parts"] if saved else None)
        shares = self.parts // processes.world
        self.progress = progress if processes.leads else nowhere
        device = processes.device
        self.images, self.fingerprint = len(data.training), data.training.fingerprint
        self.method = in_parts(recipe.build_method, shares)
        self.epoch = self.batch = 0
        self.loaders = build_loaders(
            recipe,
            data,
            device,
            take=rows_taken(processes, lambda: self.method, shares),
            world=self.parts,
        )
        self.start: dict[str, Any] | None
        self.pseudo: dict[str, Any] | None
        model = network(recipe, data.training, self.parts).to(device)
        first = self.loaders[0]
        warnings = [*warnings, *bring_in(self, first, saved, model)]
        self.method.bind(model, first.images.pixels(slice(1)).to(device))
        self.plan = planned(recipe, self.loaders, self.method, processes.world, self.parts)
        self.learner = learner(recipe, model, self.plan)
        self.checker, self.recovery, self.early_stop = watchers(recipe, data.held_out.to(device))
        self.checked = Meter()
        self.best = (-1.0, -1.0)
        self.seconds = 0.0
        self.stopped = self.done = False
        take_up(self, saved, warnings, data.remarks)
        records = directory.log()
        settle(recipe.engine.precision, self.learner, records=records, record=journal.event)
        compiling.choose(
            recipe.engine.compile,
            self.learner,
            batch=lambda: self._first_part(shares),
            records=records,
            record=journal.event,
        )
        capturing.choose(
            recipe.engine.graph,
            self.learner,
            self.method,
            batch=lambda: next(self.loader.epoch(0)),
            records=records,
            record=journal.event,
        )

    @property
    def loader(self) -> AnyLoader:
        """Of the phase that the present epoch belongs to."""
        return self.loaders[self.plan.phase(self.epoch)]

    def _first_part(self, shares: int) -> tuple[Tensor, Tensor]:
        """What the network sees at once of the first batch."""
        x, y = next(self.loader.epoch(0))
        return x.chunk(shares)[0], y.chunk(shares)[0]

    # --- the loop

    def go(self) -> None:
        """Train until the planned updates are done; returns at once if they are."""
        if self.done:
            return
        self.progress("train", self.learner.updates, self.plan.updates, "")
        self._clock = self._saved = clock.seconds(self.learner.device)
        while self._going:
            loader = self.loader
            self._note_phase()
            check_every = max(1, round(self.recipe.check.every * len(loader)))
            for x, y in loader.epoch(self.epoch, self.batch):
                self._learn(Batch(x, y))
                place = self.epoch * len(loader) + self.batch
                if self.batch == len(loader):
                    self._end_epoch()
                if not self._going:
                    break
                if place % check_every == 0:
                    self._check()
                if self._time_to_save():
                    self._save()
        self._check()
        self.done = True
        self._save()

    @property
    def _going(self) -> bool:
        return self.learner.updates < self.plan.updates and not self.stopped

    def _note_phase(self) -> None:
        """Log where a phase begins; what it changes stands in the recipe."""
        phase = self.plan.phase(self.epoch)
        begin = self.plan.ends[phase - 1][0] if phase else 0
        if self.recipe.phases and (self.epoch, self.batch) == (begin, 0):
            self.journal.event("phase", phase=phase + 1, **self._position)

    def _learn(self, batch: Batch) -> None:
        learner = self.learner
        before = learner.updates
        spent = learner.spent.thirds
        metrics = learner.fit(self.method, batch, at_most=self.plan.updates - before)
        self.batch += 1
        costs = list(accumulate(self.method.update_thirds(len(batch.x))))
        self.journal.add(
            [
                {
                    "update": before + place,
                    "epoch": self.data_passes,
                    "learning_rate": learner.rate(before + place - 1),
                    "spent_passes": self.passes(spent + costs[place - 1]),
                    "images": images,
                }
                for place, images in enumerate(metrics.images, 1)
            ],
            metrics,
        )
        if self.journal.full:
            self._flush()

    def _end_epoch(self) -> None:
        self._flush()
        self.journal.end_epoch(**self._position)
        if self.early_stop is not None:
            first = next(self.loader.epoch(self.epoch))
            event = self.early_stop.look(Batch(*first), self.learner, self.checked)
            if event is not None:
                self.stopped = True
                self.journal.event("guard", **self._position, **event)
            self._clock = clock.seconds(self.learner.device)
        self.epoch, self.batch = self.epoch + 1, 0

    def _check(self) -> None:
        """Look at held-out images; keep the best weights; undo a collapse."""
        self._flush()
        if self.checker is not None:
            trained = self.journal.end_stretch()
            outcome = self._outcome(self.learner.evaluated)
            self.journal.event(
                "check",
                **self._position,
                attack=self.checker.attack,
                norm=self.checker.ball.norm,
                eps=self.checker.ball.eps,
                images=len(self.checker.y),
                trained_accuracy=trained,
                clean_accuracy=outcome.clean,
                robust_accuracy=outcome.robust,
            )
            if (outcome.robust, outcome.clean) > self.best:
                self.best = (outcome.robust, outcome.clean)
                self.directory.save_checkpoint("best", state_of(self))
            if self.recovery is not None:
                if self.learner.averaged is not None:
                    # averaged weights lag behind the ones that would collapse
                    outcome = self._outcome(self.learner.model)
                left = self.plan.updates - self.learner.updates
                found = self.recovery.look(outcome, trained, self.learner, self.method, left=left)
                if found is not None:
                    self.method, event = found
                    self.journal.event("guard", **self._position, **event)
        self._clock = clock.seconds(self.learner.device)

    def _outcome(self, model: nn.Module) -> Outcome:
        """One process judges for all, so that all decide alike."""
        assert self.checker is not None
        if not self.processes.leads:
            return Outcome(*self.processes.told(0, 0))
        found = self.checker(model, self.checked)
        return Outcome(*self.processes.told(found.clean, found.robust))

    # --- where things stand

    @property
    def data_passes(self) -> float:
        return self.epoch + self.batch / len(self.loader)

    @property
    def _position(self) -> dict[str, float]:
        return {
            "update": self.learner.updates,
            "epoch": self.data_passes,
            "spent_passes": self.passes(self.learner.spent.thirds),
            "seconds": self.seconds,
        }

    def passes(self, thirds: int) -> float:
        """What all processes have spent where each has spent `thirds`, per training image."""
        return passes_of(self.processes.world * thirds, self.images)

    def _flush(self) -> None:
        now = clock.seconds(self.learner.device)
        self.seconds += now - self._clock
        self._clock = now
        if self.journal.empty:
            return
        # here alone, at places that depend on the recipe and not on the clock: a mean rounds
        self.learner.settle()
        loss = self.journal.flush(self.seconds)
        phases = len(self.plan.ends)
        where = f"phase {self.plan.phase(self.epoch) + 1} of {phases}, " if phases else ""
        said = f"{where}loss {loss:.3f}"
        self.progress("train", self.learner.updates, self.plan.updates, said)

    def _time_to_save(self) -> bool:
        """Whether the last checkpoint is long ago, by one clock; asked where all meet anyway."""
        if self.processes.world > 1 and not self.journal.empty:
            return False
        seconds = time.perf_counter() - self._saved  # as it is: nothing waits at a batch
        return self.processes.told(seconds)[0] > self.recipe.engine.checkpoint_seconds

    def _save(self) -> None:
        self._flush()
        self.directory.save_checkpoint("last", state_of(self))
        self._clock = self._saved = clock.seconds(self.learner.device)
