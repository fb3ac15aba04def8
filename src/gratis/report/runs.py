"""A run as the page shows it."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gratis.figures import COLOURS, MARKERS, Array
from gratis.held import RECIPE
from gratis.names import spell
from gratis.origins import differences, fingerprint, other_images
from gratis.report.phases import phases
from gratis.report.values import distinct, listed
from gratis.run import Record, Run


class RunView:
    """One run as the page shows it: `label` tells it from the others, `series` is its colour."""

    def __init__(self, run: Run, label: str, series: int) -> None:
        self.label = label
        self.series = series
        self.colour = f"var(--series-{series % COLOURS})"
        self.marker = list(MARKERS.values())[series % len(MARKERS)]
        self.path = run.path
        self.directory = run.path.resolve().name
        self.log = run.log()
        self.phases = phases(run.recipe, self.log)
        self.results = run.results
        self.verified = _verified(run, self.results)
        self.recipe_text = (run.path / RECIPE).read_text(encoding="utf-8")
        self.recipe_sha256 = run.recipe_sha256
        self.picture_arrays = run.pictures()
        self.view_arrays = _views(run, self.results)

    @property
    def evaluations(self) -> list[Record]:
        return self._resulting("evaluations")

    @property
    def unions(self) -> list[Record]:
        """The worst case of several attacks, image by image, written like an evaluation."""
        found = []
        for union in self._resulting("unions"):
            clean = [
                evaluation["clean"]
                for evaluation in self.evaluations
                if all(evaluation[key] == union[key] for key in ("threat", "checkpoint", "images"))
                and self.fingerprint(evaluation) == self.fingerprint(union)
            ]
            named = {"attack": f"all of {listed(union['attacks'])}", "parameters": {}}
            found.append({**union, **named, "clean": clean[0] if clean else None})
        return found

    @property
    def checks(self) -> list[Record]:
        """What was found about gradient masking."""
        return self._resulting("checks")

    @property
    def detection(self) -> Record | None:
        """What came of looking for boxes."""
        return None if self.results is None else self.results.get("detection")

    @property
    def shifts(self) -> list[Record]:
        """What came of images from another distribution."""
        return self._resulting("shifts")

    def _resulting(self, key: str) -> list[Record]:
        return [] if self.results is None else list(self.results.get(key, []))

    @property
    def given(self) -> Record | None:
        """Where the weights come from, of a model that was trained elsewhere."""
        return None if self.results is None else self.results.get("given")

    @property
    def budget(self) -> Record | None:
        """What training cost; None where it has not ended, and where it is not known."""
        if self.results is None or self.given or not self.finished:
            return None
        budget: Record = self.results["budget"]
        return budget

    @property
    def price(self) -> float | None:
        """Passes for each training image, those of checks during training among them; None where
        they are not known.
        """
        budget = self.budget
        return None if budget is None else budget["metered_passes"] + budget["guard_passes"]

    @property
    def training_images(self) -> int | None:
        """How many there were; None where an earlier version did not keep it."""
        return None if self.budget is None else self.budget.get("images")

    @property
    def finished(self) -> bool:
        """Whether training has ended, as far as results and log know."""
        if self.results is None or not self.results.get("finished", True):
            return False
        gone = max((record["update"] for record in self._records("step")), default=0)
        return self.given is not None or gone <= self.results["budget"]["updates"]

    @property
    def data_name(self) -> str | None:
        return None if self.results is None else str(self.results["data"]["name"])

    @property
    def note(self) -> str | None:
        return None if self.results is None else self.results["data"].get("note")

    @property
    def guards(self) -> list[Record]:
        return self._records("guard")

    @property
    def warnings(self) -> list[str]:
        """Of the last evaluation, and of all whose figures are shown."""
        if self.results is None:
            return []
        kinds = ("evaluations", "unions", "checks", "shifts")
        entries = [entry for kind in kinds for entry in self._resulting(kind)]
        entries += [self.detection] if self.detection else []
        return distinct(said for of in (self.results, *entries) for said in of.get("warnings", []))

    @property
    def recipe_changed(self) -> bool:
        return self.results is not None and self.results["recipe_sha256"] != self.recipe_sha256

    @property
    def events(self) -> list[Record]:
        later = [{"kind": "warning", "message": message} for message in self.warnings]
        kinds = ("precision", "start", "pseudo-labels", "guard", "resumed", "warning")
        return self._records(*kinds) + later

    @property
    def last_check(self) -> Record | None:
        checks = self._records("check")
        return checks[-1] if checks else None

    @property
    def spent_passes(self) -> float:
        return max((record.get("spent_passes", 0.0) for record in self.log), default=0.0)

    def _records(self, *kinds: str) -> list[Record]:
        return [record for record in self.log if record["kind"] in kinds]

    def columns(self, kind: str, name: str) -> tuple[Array, Array]:
        """Passes spent and `name` of every record of `kind`.

        NaN stands where a guard went back to an earlier model: what follows is no
        continuation of what came before.
        """
        rows = [
            (record["spent_passes"], record[name]) if record["kind"] == kind else (None, None)
            for record in self.log
            if record["kind"] == kind
            or (record["kind"] == "guard" and record["event"] == "restored")
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def question(self, evaluation: Record) -> str:
        """What an evaluation shares with those that compare with it."""
        assert self.results is not None
        keys = ("attack", "parameters", "threat", "checkpoint", "images")
        asked = {key: evaluation[key] for key in keys}
        data = [self.results["data"]["name"], self.fingerprint(evaluation)]
        return json.dumps([asked, *data], sort_keys=True)

    def fingerprint(self, entry: Record) -> str:
        """Of the test images that an entry is of."""
        return fingerprint(self.results or {}, entry)

    def remarks(self, entry: Record) -> list[str]:
        """What must be read with an entry's figure beside its protocol: images, device and versions
        where they are not the header's, warnings, successes that did not hold.
        """
        said = [*differences(self.results or {}, entry), *entry.get("warnings", [])]
        if count := entry.get("rejected"):
            said.append(f"{count} successes of the attack did not hold when looked at again")
        return said

    # --- commands that do it again

    def evaluate_command(self, evaluation: Record) -> str:
        eps, count = spell(evaluation["threat"]["eps"]), str(evaluation["images"]["count"])
        attacks = evaluation["attack"].split(", then ")  # each on what the ones before left
        what = [word for attack in attacks for word in ("--attack", attack)]
        what += ["--union"] * (len(attacks) > 1) + ["--eps", eps, "--limit", count]
        if other_images(self.results or {}, evaluation):
            what += ["--set", "data.root=DIR"]  # which one is not known any more
        return self._command("evaluate", self._checkpoint(evaluation), *what)

    def evaluated(self, asked: Record) -> list[str]:
        """The words of a command that evaluates the same checkpoint."""
        return ["gratis", "evaluate", self._checkpoint(asked)]

    def verify_command(self, summary: Record) -> str:
        eps, count = spell(summary["threat"]["eps"]), str(summary["images"]["count"])
        what = ["--eps", eps, "--limit", count]
        what += ["--time-limit", spell(summary["settings"]["time_limit"])]
        return self._command("verify", self._checkpoint(summary), *what)

    def checks_command(self) -> str:
        return self._command("evaluate", str(self.path), "--checks", "full")

    def train_command(self) -> str:
        return self._command("train", str(self.path / RECIPE), "--out", "ANOTHER_DIRECTORY")

    def _checkpoint(self, asked: Record) -> str:
        return str(self.path / "checkpoints" / f"{asked['checkpoint']}.pt")

    @staticmethod
    def _command(*words: str) -> str:
        return shlex.join(["gratis", *words])


def run_views(runs: Sequence[Run]) -> list[RunView]:
    return [
        RunView(run, label, series)
        for series, (run, label) in enumerate(zip(runs, _labels(runs), strict=True))
    ]


def _verified(run: Run, results: Record | None) -> list[Record]:
    """The summaries of exact verification, the smallest radius first; without those of weights
    that training has left since.
    """
    found = [json.loads(p.read_text("utf-8")) for p in (run.path / "verify").glob("*.json")]
    found = [summary for summary in found if not _left(summary, results)]
    return sorted(found, key=lambda summary: float(summary["threat"]["eps"]))


def _views(run: Run, results: Record | None) -> dict[str, Array]:
    """What `gratis pictures` drew, unless training has left those weights since."""
    arrays = run.views()
    left = "about" in arrays and _left(json.loads(str(arrays["about"])), results)
    return {} if left else arrays


def _left(of: Record, results: Record | None) -> bool:
    """Whether something is of a checkpoint that has been replaced since: by the end of training,
    or by another of its name that was evaluated later on.
    """
    if results is None:
        return False
    evaluated = [e["update"] for e in results["evaluations"] if e["checkpoint"] == of["checkpoint"]]
    ends = [results["budget"]["updates"]] if of["checkpoint"] == "last" else []
    return bool(of.get("update", math.inf) < max([*ends, *evaluated], default=-math.inf))


def _method(run: Run) -> str:
    """The method's name; from the recipe while there are no results."""
    if run.results is not None:
        return str(run.results["method"])
    method = run.recipe.get("method", run.path.resolve().name)
    return str(method["name"] if isinstance(method, dict) else method)


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its method, with the directory where methods repeat."""
    methods = [_method(run) for run in runs]
    names = [run.path.resolve().name for run in runs]
    repeated = Counter(zip(methods, names, strict=True))
    labels = []
    for run, method, name in zip(runs, methods, names, strict=True):
        if methods.count(method) == 1:
            labels.append(method)
        else:
            labels.append(f"{method} ({run.path if repeated[method, name] > 1 else name})")
    return labels


def notes(views: Sequence[RunView]) -> list[str]:
    """What must be said of the data beside any figure; with its name where data sets differ."""
    named = len(distinct(view.data_name for view in views)) > 1
    return distinct(
        f"{view.data_name}: {view.note}" if named else view.note for view in views if view.note
    )
