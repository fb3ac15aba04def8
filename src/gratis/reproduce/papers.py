"""What the papers print, and how each row is made: papers/*.yaml. Never imports torch."""

from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from gratis.names import nearest
from gratis.reproduce.columns import PREDICTED, Column
from gratis.scaling import Case, Job
from gratis.schema import construct

Scale = Literal["smoke", "cpu", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)

Extra = Literal["none", "pictures", "landscape", "pass-accuracies", "verified"]


@dataclass(frozen=True)
class Layout:
    """`machines` of `gpus` each."""

    machines: int
    gpus: int


@dataclass(frozen=True)
class Scaling:
    """What the columns predicted-hours and predicted-speed-up are computed from.

    of: the row whose printed figures in these columns say what one of its machines takes.
    images: of an epoch.  parameters, tensors: of the network.  steps, passes: an image's probes,
    and its passes for gradients.  batch: images of a machine.  gigabits: a second between them.
    """

    of: str
    images: int
    parameters: int
    tensors: int
    steps: int
    passes: int
    batch: int
    gigabits: float


@dataclass(frozen=True)
class Row:
    """set: settings on top of the table's; cpu, smoke: further ones at these scales.
    recipe: in place of the table's.  epochs: as printed, counted as the paper does.
    printed: numbers by column, accuracies in percent; what no source gives is left out.
    x, series: where it stands in the table's figure.  layout: which hours are predicted for.
    """

    name: str
    title: str = ""
    recipe: str | None = None
    set: tuple[str, ...] = ()
    cpu: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ()
    epochs: float | None = None
    printed: dict[str, float] = field(default_factory=dict)
    source: str = ""
    note: str = ""
    x: float | None = None
    series: str = ""
    layout: Layout | None = None


@dataclass(frozen=True)
class Cpu:
    """What two cores do within hours.  epochs: the factor on every row's data passes."""

    set: tuple[str, ...] = ()
    epochs: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Sweep:
    """A figure of `columns` against the rows' x, a line for each of their series."""

    columns: tuple[str, ...]
    x_label: str
    title: str
    log: bool = False


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    recipe: a shipped one, which `set` and the rows' settings change.
    stand_in: the paper's data and net, where other ones stand in for them at every scale.
    extra: what is done with each trained row besides.  rates: draw the learning rates.
    scaling: for predicted columns, which every row then needs a layout for.
    """

    name: str
    title: str
    paper: str
    kind: Literal["table", "figure"]
    recipe: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    set: tuple[str, ...] = ()
    cpu: Cpu = field(default_factory=Cpu)
    stand_in: str = ""
    notes: tuple[str, ...] = ()
    extra: Extra = "none"
    sweeps: tuple[Sweep, ...] = ()
    rates: bool = False
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        columns = [column.name for column in self.columns]
        for names in (columns, [row.name for row in self.rows]):
            if repeated := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"two of the same name: {', '.join(sorted(repeated))}")
        named = {name for sweep in self.sweeps for name in sweep.columns}
        for key in named.union(*(row.printed for row in self.rows)):
            if key not in columns:
                raise ValueError(
                    f"no column {key!r}{nearest(key, columns)}; there are {', '.join(columns)}"
                )
        if self.scaling or any(column.measure in PREDICTED for column in self.columns):
            for row in self.rows:
                self.case(row).hours()  # what cannot be predicted is answered before any run

    def case(self, row: Row) -> Case:
        """What `gratis.scaling` predicts hours and speed-up of `row` from.

        Gradients travel as in the released code of Zhang 2022: in fp32, each tensor by itself,
        after the backward. Raises ValueError for what the table leaves out.
        """
        given = self.scaling
        if given is None or row.layout is None:
            raise ValueError(f"to predict row {row.name}, give the table `scaling`, it a `layout`")
        known = self.choose((given.of,))[0]
        figures = {c.measure: known.printed.get(c.name) for c in self.columns}
        hours, speed_up = (figures.get(measure) for measure in PREDICTED)
        if known.layout is None or known.epochs is None or hours is None or speed_up is None:
            raise ValueError(
                f"scaling.of: row {known.name} needs a layout, epochs, and printed figures in "
                f"columns that measure {' and '.join(PREDICTED)}"
            )
        job = Job(
            hours=hours * speed_up,
            gpus=known.layout.gpus,
            images=given.images,
            epochs=known.epochs,
            cost=given.steps * 2 / 3 + given.passes,
            parameters=given.parameters,
            tensors=given.tensors,
        )
        return Case(
            job,
            row.layout.machines,
            row.layout.gpus,
            per_machine=given.batch,
            alone=given.batch,
            gigabits=given.gigabits,
            messages=given.tensors,
        )

    def choose(self, patterns: tuple[str, ...]) -> tuple[Row, ...]:
        """The rows whose names match any of the shell patterns, all of them without any.

        ValueError for a pattern that no row matches.
        """
        from fnmatch import fnmatchcase

        names = [row.name for row in self.rows]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"{self.name} has no row {pattern!r}{nearest(pattern, names)}; "
                    f"there are {', '.join(names)}"
                )
        return tuple(
            row
            for row in self.rows
            if not patterns or any(fnmatchcase(row.name, pattern) for pattern in patterns)
        )


@cache
def files() -> dict[str, Path]:
    """The descriptions that come with the package, by table name."""
    folder = Path(str(resources.files("gratis") / "papers"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read(name: str) -> Table:
    """The table or figure `name`, or of a file NAME.yaml; ValueError if there is none, or its
    file does not fit.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else files().get(name)
    if path is None or not path.is_file():
        raise ValueError(
            f"no table {name!r}{nearest(name, files())}; there are {', '.join(files())}; "
            "or give a YAML file"
        )
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return table(path.stem, values)


def table(name: str, values: Any) -> Table:
    """A table from YAML types; ValueError names the key that does not fit."""
    if not isinstance(values, dict):
        raise ValueError(f"{name}: {values!r} should be a mapping of keys")
    rows = values.get("rows")
    for row in rows if isinstance(rows, list) else []:
        printed = row.get("printed") if isinstance(row, dict) else None
        for column, figure in (printed or {}).items():
            if isinstance(figure, bool) or not isinstance(figure, int | float):
                raise ValueError(f"{name}: printed.{column}: {figure!r} is no number")
    try:
        return construct(Table, {"name": name, **values}, "")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
