"""The papers' tables: what is printed, that every row's path exists, and what a reader is told."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torchvision
import yaml

from gratis.cli import main
from gratis.recipe import from_plain
from gratis.reproduce import papers
from gratis.reproduce.columns import SHIFTS, Column
from gratis.reproduce.outcome import FACTS, outcome
from gratis.reproduce.page import write
from gratis.reproduce.papers import SCALES
from gratis.reproduce.rows import reproduce
from gratis.reproduce.settings import attack, values
from gratis.run import Run

TABLES = {name: papers.read(name) for name in papers.files()}
every_row = pytest.mark.parametrize(
    ("table", "row"),
    [(table, row) for table in TABLES.values() for row in table.rows],
    ids=lambda part: part.name,
)


@contextmanager
def quiet(label):
    yield lambda stage, done, total, note: None


def make(table, folder, scale="smoke", rows=(), given=()):
    if isinstance(table, str):
        table = papers.read(table)
    chosen = table.choose(rows)
    return reproduce(table, scale, folder, rows=chosen, given=given, bar=quiet)


def recipe(table, row, scale="paper", given=()):
    (chosen,) = TABLES[table].choose((row,))
    return from_plain(values(TABLES[table], chosen, scale, given))


# --- what the files say


def test_every_table_is_there():
    assert set(TABLES) == {
        "fast-table1", "fast-table2", "fast-table3", "fast-figure2",
        "free-cifar10", "free-cifar100", "free-replay", "free-pictures", "free-landscape",
        "advprop-table1", "advprop-table2", "advprop-table4", "advprop-table5",
        "advprop-figure2", "advprop-a1", "advprop-table3", "advprop-table6", "advprop-table7",
        "fast-table4", "fast-table5", "fast-figure1", "free-imagenet",
        "dat-cifar10", "dat-imagenet", "dat-scaling",
    }  # fmt: skip


@every_row
def test_every_row_builds_at_every_scale(table, row, monkeypatch):
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    built = {scale: from_plain(values(table, row, scale)) for scale in SCALES}
    for scale, made in built.items():
        made.plain()
        made.check_method()
        assert made.guard.mode in ("off", "early-stop")
        assert made.data.holdout == 0, "papers train on all images"
        without_files = made.data.name in ("digits", "gratis.data.detection:shapes")
        assert without_files == (scale == "smoke")
        if made.data.name != "mnist" or built["paper"].data.name == "mnist":
            assert made.method == built["paper"].method, "no scale changes the method"
        assert made.engine.probe_norm == built["paper"].engine.probe_norm
    assert built["cpu"].evaluation.limit is not None
    assert built["smoke"].data.limit <= 100
    passes = built["paper"].budget.data_passes
    replays = getattr(built["paper"].build_method(), "replays", 1)
    assert passes * replays == pytest.approx(row.epochs, rel=2e-3), "epochs as printed"
    if built["smoke"].method["name"] == "fast-advprop":
        attacked = built["smoke"].build_method().parts(built["smoke"].data.batch_size)[1]
        assert attacked >= built["smoke"].model.aux_groups


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_column_is_measured_or_says_why_not(table):
    for column in table.columns:
        if not column.measured:
            assert column.missing
            assert re.match(r"corruption-error|imagenet-r|stylized", column.measure)
    for row in table.rows:
        for name, figure in row.printed.items():
            (column,) = [c for c in table.columns if c.name == name]
            assert not column.is_accuracy or 0 <= figure <= 100


def test_the_methods_are_the_papers():
    steps = {
        row.name: recipe("fast-table1", row.name).build_method()
        for row in TABLES["fast-table1"].rows
    }
    alphas = {name: round(255 * steps[name].resolved_step_size, 6) for name in steps}
    assert alphas == {
        "fgsm-zero": 8, "fgsm-previous": 8, "fgsm-alpha-8": 8, "fgsm-alpha-10": 10,
        "fgsm-alpha-16": 16, "free-8": 8, "pgd-7": 2,
    }  # fmt: skip
    starts = {name: method.start for name, method in steps.items() if name != "free-8"}
    assert starts == {
        "fgsm-zero": "zero", "fgsm-previous": "previous", "fgsm-alpha-8": "random",
        "fgsm-alpha-10": "random", "fgsm-alpha-16": "random", "pgd-7": "random",
    }  # fmt: skip
    assert recipe("fast-table1", "fgsm-alpha-10").optimizer.learning_rate == 0.05
    assert recipe("fast-table1", "pgd-7").budget.data_passes == 400

    mnist = recipe("fast-table2", "pgd")
    assert (mnist.build_method().steps, mnist.build_method().step_size) == (40, 0.01)
    assert (mnist.data.batch_size, mnist.optimizer.learning_rate) == (50, 1e-4)
    assert mnist.evaluation.eps == (0.1, 0.3)
    assert recipe("fast-table2", "fgsm").build_method().step_size == 0.375

    rates = [
        recipe("fast-table3", row).optimizer.learning_rate for row in ("dawn-pgd", "dawn-free")
    ]
    assert rates == [0.21, 0.04]

    free = recipe("free-cifar10", "free-8")
    assert free.model.name == "wrn-32-10"
    assert free.budget.data_passes * 50_000 / 128 * 8 == pytest.approx(80_000)
    assert (free.optimizer.weight_decay, free.optimizer.decay) == (2e-4, "weights")

    fast = recipe("advprop-table4", "p-33")
    assert fast.build_method().parts(384) == (256, 128)
    assert recipe("advprop-table1", "pgd-5").engine.probe_norm == "eval"
    assert recipe("advprop-a1", "fgsm").build_method().start == "clean"


def test_printed_figures_of_the_headline_rows():
    def printed(table, row):
        return TABLES[table].choose((row,))[0].printed

    assert printed("fast-table1", "fgsm-alpha-10") == {"clean": 83.25, "pgd-50-10": 46.25}
    assert printed("fast-table2", "fgsm")["verified"] == 96.8
    assert printed("fast-table3", "dawn-fgsm")["minutes"] == 6.02
    assert printed("free-cifar10", "free-8")["cw-100"] == 46.60
    assert printed("free-cifar100", "free-8")["pgd-100"] == 25.58
    assert "pgd-100" not in printed("free-cifar100", "natural"), "not found is left out"
    assert printed("advprop-table5", "both") == {"clean": 76.53}
    assert printed("advprop-figure2", "plain")["train-adversarial"] == 88.0


def test_two_cores_train_less_and_the_user_has_the_last_word(monkeypatch):
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    assert recipe("free-cifar10", "free-8", "cpu").budget.data_passes == pytest.approx(2.56)
    given = ("budget.passes=3", "data.limit=500")
    mine = recipe("free-cifar10", "free-8", "cpu", given)
    assert (mine.budget.passes, mine.budget.data_passes, mine.data.limit) == (3, None, 500)


def test_smoke_cuts_the_attack_and_keeps_its_options():
    assert attack(Column("a", measure="pgd-50-10:alpha=2/255"), "smoke") == "pgd-2-2:alpha=2/255"
    assert attack(Column("a", measure="pgd-100"), "smoke") == "pgd-2"
    assert attack(Column("a", measure="pgd-100"), "cpu") == "pgd-100"
    assert attack(Column("a", measure="verified", missing="no verifier yet"), "cpu") is None


def test_recompressed_cifar10_stands_in_where_only_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GRATIS_DATA", str(tmp_path))
    assert recipe("fast-table3", "dawn-free", "cpu").data.name == "cifar10"
    (tmp_path / "cifar10-jpeg").mkdir()
    found = recipe("fast-table3", "dawn-free", "cpu").data
    assert (found.name, found.root) == ("folder", str(tmp_path / "cifar10-jpeg"))
    assert recipe("free-cifar100", "free-8", "cpu").data.name == "cifar100"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert recipe("fast-table3", "dawn-free", "cpu").data.name == "cifar10"


def test_table_1_keeps_its_steps_in_shares_of_eps_on_mnist():
    for name in ("fgsm-zero", "fgsm-previous", "fgsm-alpha-8", "fgsm-alpha-10", "fgsm-alpha-16"):
        paper, cpu = (
            recipe("fast-table1", name, scale).build_method() for scale in ("paper", "cpu")
        )
        shares = [m.resolved_step_size / m.ball.eps for m in (paper, cpu)]
        assert shares[0] == pytest.approx(shares[1])
        assert (paper.start, paper.steps) == (cpu.start, cpu.steps)


MINIMAL = """
title: a table
paper: a paper
kind: table
recipe: cifar10
columns: [{name: clean}, {name: pgd-20, measure: pgd-20}]
rows:
  - {name: one, set: [method=free-2], printed: {clean: 12.5}, epochs: 3}
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("title:", "titel:", "did you mean title"),
        ("epochs: 3", "epoch: 3", r"rows\[0\].epoch .did you mean epochs"),
        ("{clean: 12.5}", "{claen: 12.5}", "did you mean clean"),
        ("12.5", "about 12", "is no number"),
        ("measure: pgd-20", "measure: pdg-20", "missing"),
        ("kind: table", "kind: tabel", "kind"),
        ("{name: pgd-20, measure", "{name: clean, measure", "same name"),
    ],
)
def test_a_file_that_does_not_fit_names_the_key(before, after, said):
    papers.table("t", yaml.safe_load(MINIMAL))
    assert before in MINIMAL
    with pytest.raises(ValueError, match=said):
        papers.table("t", yaml.safe_load(MINIMAL.replace(before, after, 1)))


def test_a_table_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    own = papers.read(str(tmp_path / "mine.yaml"))
    assert (own.name, own.rows[0].printed) == ("mine", {"clean": 12.5})
    (tmp_path / "torn.yaml").write_text("title: [")
    with pytest.raises(ValueError, match="is no YAML"):
        papers.read(str(tmp_path / "torn.yaml"))


SCALING = """
title: a table
paper: a paper
kind: table
recipe: cifar10
columns: [{name: h, measure: predicted-hours}, {name: s, measure: predicted-speed-up}]
rows:
  - {name: one, layout: {machines: 1, gpus: 2}}
  - {name: two, layout: {machines: 2, gpus: 2}, printed: {h: 5, s: 2}, epochs: 3}
scaling:
  {of: two, images: 900, parameters: 7, tensors: 2, steps: 3, passes: 1, batch: 9, gigabits: 1}
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("scaling:", "scalings:", "did you mean scaling"),
        ("images: 900, ", "", "missing key scaling.images"),
        ("of: two", "of: tow", "did you mean two"),
        ("of: two", "of: one", "printed figures"),
        (", s: 2}", "}", "printed figures"),
        (", layout: {machines: 1, gpus: 2}", "", "row one, give"),
        ("machines: 1", "machines: 0", "1 or more"),
        ("images: 900", "images: 0", "above 0"),
        ("gigabits: 1", "gigabits: 0", "above 0"),
        ("parameters: 7", "parameters: 99000000000000", "exchange and coding alone"),
    ],
)
def test_what_cannot_be_predicted_is_answered_when_it_is_read(before, after, said):
    papers.table("t", yaml.safe_load(SCALING))
    assert before in SCALING
    with pytest.raises(ValueError, match=said):
        papers.table("t", yaml.safe_load(SCALING.replace(before, after, 1)))


def test_predicted_columns_need_what_they_are_predicted_from():
    values = yaml.safe_load(SCALING)
    del values["scaling"]
    with pytest.raises(ValueError, match="give the table `scaling`"):
        papers.table("t", values)


def test_an_early_stop_is_said(tmp_path):
    make("fast-figure2", tmp_path, rows=("fgsm-5",))
    with (tmp_path / "fgsm-5" / "log.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "guard", "update": 3}) + "\n")
    make("fast-figure2", tmp_path, rows=("fgsm-5",))
    assert "stopped early, at update 3" in (tmp_path / "table.md").read_text()


def test_unknown_names_are_answered():
    with pytest.raises(ValueError, match="did you mean fast-table1"):
        papers.read("fast-tabel1")
    with pytest.raises(ValueError, match="did you mean free-8"):
        TABLES["fast-table1"].choose(("fre-8",))
    chosen = TABLES["fast-table1"].choose(("fgsm-alpha-*", "pgd-7"))
    assert [row.name for row in chosen] == [
        "fgsm-alpha-8",
        "fgsm-alpha-10",
        "fgsm-alpha-16",
        "pgd-7",
    ]


# --- making rows


@pytest.mark.usefixtures("few_steps")
def test_a_table_end_to_end_and_again(tmp_path, monkeypatch):
    record, complete = make("fast-table2", tmp_path, rows=("fgsm",))
    assert complete, "all that was asked"
    left, row = record["rows"]
    assert left["cells"]["clean"] == {"printed": 99.2, "why": "not run"}
    assert row["status"] == "done"
    assert row["epochs"] == {"printed": 10, "here": 2}
    assert row["budget"]["metered_passes"] == pytest.approx(2 * 5 / 3)
    assert row["budget"]["papers_passes"] == 4
    verified = row["cells"]["verified"]
    assert verified["printed"] == 96.8
    assert 0 <= verified["measured"] <= row["cells"]["pgd-0.1"]["measured"], "proofs are right"
    for name, eps in (("pgd-0.1", 0.1), ("pgd-0.3", 0.3)):
        cell = row["cells"][name]
        assert (cell["attack"], cell["threat"]["eps"], cell["images"]) == (
            "pgd-2-2:alpha=0.01", eps, 20,
        )  # fmt: skip
        low, high = cell["ci95"]
        assert low <= cell["measured"] <= high
    said = "smoke: not a result; digits; 80 training and 20 test images; small-conv of width 4"
    assert row["conditions"] == said

    assert json.loads((tmp_path / "table.json").read_text()) == record
    lines = (tmp_path / "table.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| FGSM")]
    assert said in line
    assert "| 99.20 |" in line
    assert all("smoke: not a result" in line for line in lines if line.startswith(("| FG", "| PG")))
    page = (tmp_path / "table.html").read_text()
    assert page.count("smoke: not a result") >= 3

    weights = Run.open(tmp_path / "fgsm").checkpoint_path("last").stat().st_mtime_ns
    monkeypatch.setattr("gratis.train.run", None)  # nothing is trained again
    again, complete = make("fast-table2", tmp_path, rows=("fgsm",))
    assert complete
    assert again == record
    assert Run.open(tmp_path / "fgsm").checkpoint_path("last").stat().st_mtime_ns == weights


def test_an_interrupted_row_goes_on(tmp_path, monkeypatch):
    from gratis import assess, train

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "evaluate_run", killed)
    with pytest.raises(KeyboardInterrupt):
        make("fast-table1", tmp_path, rows=("free-8",))
    assert not (tmp_path / "free-8" / FACTS).exists()
    trained = Run.open(tmp_path / "free-8").log()
    monkeypatch.setattr(train, "evaluate_run", assess.evaluate_run)
    _, complete = make("fast-table1", tmp_path, rows=("free-8",))
    assert complete
    assert Run.open(tmp_path / "free-8").log() == trained, "only the evaluation was missing"


def test_a_further_attack_trains_nothing_again(tmp_path, monkeypatch):
    before = yaml.safe_load(MINIMAL)
    make(papers.table("t", before), tmp_path)
    weights = Run.open(tmp_path / "one").checkpoint_path("last").stat().st_mtime_ns
    further = {"name": "far", "measure": "pgd-3-1:alpha=1/255"}
    after = before | {"columns": [*before["columns"], further]}
    record, complete = make(papers.table("t", after), tmp_path)
    assert complete
    assert record["rows"][0]["cells"]["far"]["attack"] == "pgd-2-1:alpha=1/255"
    assert Run.open(tmp_path / "one").checkpoint_path("last").stat().st_mtime_ns == weights
    evaluated = [entry["attack"] for entry in Run.open(tmp_path / "one").results["evaluations"]]
    assert evaluated == ["pgd-2", "pgd-2-1:alpha=1/255"]
    assert "resumed" not in {entry["kind"] for entry in Run.open(tmp_path / "one").log()}
    make(papers.table("t", before), tmp_path)
    monkeypatch.setattr("gratis.train.run", None)  # done for either table
    assert make(papers.table("t", after), tmp_path) == (record, True)


def test_a_row_of_other_settings_says_so_and_the_rest_goes_on(tmp_path):
    make("advprop-a1", tmp_path, rows=("fgsm",), given=("seed=1",))
    record, complete = make("advprop-a1", tmp_path)
    assert not complete
    assert [row["status"] for row in record["rows"]] == ["failed", "done"]
    assert "differs in seed" in record["rows"][0]["reason"]
    assert "another --out" in record["rows"][0]["reason"]
    assert "differs in seed" in (tmp_path / "table.md").read_text()


def test_missing_data_is_said_and_not_counted_as_done(tmp_path, monkeypatch):
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    record, complete = make("free-cifar100", tmp_path, "cpu", rows=("natural", "free-8"))
    assert not complete
    by_name = {row["name"]: row for row in record["rows"]}
    assert by_name["natural"]["status"] == by_name["free-8"]["status"] == "no data"
    assert by_name["pgd-7"]["status"] == "not run"
    for said in ("cifar100", "data.root", "GRATIS_DATA"):
        assert said in by_name["natural"]["reason"]
        assert said in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "natural").exists()


def test_settings_that_fit_nothing_are_unusable_input(tmp_path):
    with pytest.raises(ValueError, match="did you mean passes"):
        make("fast-table1", tmp_path, given=("budget.pases=3",))
    assert not list(tmp_path.iterdir())


def test_passes_of_a_shuffled_network_are_measured(tmp_path):
    record, complete = make("advprop-figure2", tmp_path)
    assert complete
    for row in record["rows"]:
        for name in ("train-clean", "train-noisy", "train-adversarial"):
            assert 0 <= row["cells"][name]["measured"] <= 100


def test_pictures_and_surfaces_are_on_the_page(tmp_path):
    _, complete = make("free-pictures", tmp_path / "p", rows=("natural", "free-8"))
    assert complete
    page = (tmp_path / "p" / "table.html").read_text()
    assert page.count("data:image/png") == 2 * 3 * 8
    record, complete = make("free-landscape", tmp_path / "l")
    assert complete
    assert (tmp_path / "l" / "table.html").read_text().count("data:image/png") == 2 * 2 * 2
    for row in record["rows"]:
        assert (
            row["cells"]["adversarial-rise"]["measured"] > row["cells"]["random-rise"]["measured"]
        )


def test_sweeps_draw_paper_and_measured(tmp_path):
    make("advprop-table4", tmp_path, rows=("p-0", "p-50"))
    page = (tmp_path / "table.html").read_text()
    assert page.count('role="img"') == 1
    assert "share of adversarial images p" in page


# --- predicted


def test_hours_are_predicted_in_closed_form_and_nothing_is_run(tmp_path):
    table = TABLES["dat-scaling"]
    record = outcome(table, "paper", tmp_path, {row.name: ("not run", "") for row in table.rows})
    assert not list(tmp_path.iterdir())
    updates, alone = 1_281_167 * 35 / 512, 16.3 * 3.1 * 3600
    for row, machines in zip(record["rows"], (1, 2, 6, 64), strict=True):
        rounds = 2 * (machines - 1)
        line = 8 * rounds / machines * 4 * 25_557_032 / (1e9 * 1448 / 1538) + rounds * 161 * 50e-6
        # the epochs' updates, and what each does inside a machine, are shared by the machines
        hours = (alone + updates * line) / machines / 3600
        assert row["cells"]["hours"]["measured"] == pytest.approx(hours)
        assert row["cells"]["speed-up"]["measured"] == pytest.approx(alone / 3600 / hours)
        assert row["cells"]["hours"]["model"] == "gratis.scaling"
        assert row["cells"]["epoch-seconds"] == {"why": "not run"}
    assert hours < 2
    write(table, record, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    said = ["| 6 machines of 6 GPUs | 16.3 | 14.62 | 3.1 | 3.46 |", "(extrapolated)"]
    assert all(any(part in line for line in lines) for part in said)
    assert any("50.5 h for 35 epochs" in line and "1 Gbit/s" in line for line in lines)


def test_predictions_are_of_what_the_rows_train():
    table = TABLES["dat-scaling"]
    one, _, six, far = table.rows
    assert one.printed["hours"] == round(six.printed["hours"] * six.printed["speed-up"], 1)
    assert "derived" in one.source
    assert "extrapolat" in far.name
    assert "extrapolat" in far.title
    assert "nobody" in far.note
    for row in table.rows:
        made = recipe("dat-scaling", row.name)
        case = table.case(row)
        assert made.data.batch_size % (case.machines * case.gpus) == 0, "GPUs share it equally"
        assert made.data.batch_size / case.machines == pytest.approx(case.per_machine, rel=0.005)
        assert made.budget.data_passes == case.job.epochs
        assert (made.engine.gradients, case.bits) == ("fp32", 32)
        assert made.method["steps"] * 2 / 3 + 2 == pytest.approx(case.job.cost)
        assert made.method["clean"] > 0, "a second pass for gradients"
    with torch.device("meta"):
        numbers = [weight.numel() for weight in torchvision.models.resnet50().parameters()]
    assert made.model.name == "resnet50"
    assert (sum(numbers), len(numbers)) == (case.job.parameters, case.job.tensors)


def test_a_row_says_how_many_processes_trained_it(tmp_path):
    make("dat-scaling", tmp_path, rows=("1x6",))
    facts = json.loads((tmp_path / "1x6" / FACTS).read_text())
    assert facts["processes"] == 1
    assert "processes;" not in (tmp_path / "table.md").read_text()
    (tmp_path / "1x6" / FACTS).write_text(json.dumps(facts | {"processes": 12}))
    table = TABLES["dat-scaling"]
    further = replace(table, columns=(*table.columns, Column("far", measure="pgd-1-2")))
    for asked in (table, further):
        record, complete = make(asked, tmp_path, rows=("1x6",))
        assert complete
        assert "; 12 processes; small-conv" in record["rows"][0]["conditions"]
    assert "measured" in record["rows"][0]["cells"]["far"], "one attacked what twelve had trained"


# --- the command


def test_the_command_lists_makes_and_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    assert main(["reproduce"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in TABLES)
    command = ["reproduce", "advprop-a1", "--rows", "fgsm"]
    assert main([*command, "--scale", "smoke"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("smoke: not a result") == 3, "on either line, and below"
    assert "76.46" in printed
    assert (tmp_path / "runs/reproduce/advprop-a1/smoke/table.html").exists()
    assert (tmp_path / "runs/reproduce/advprop-a1/smoke/fgsm/results.json").exists()
    assert main(command) == 1
    assert "GRATIS_DATA" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fast-tabel1"], "did you mean fast-table1"),
        (["fast-table1", "--rows", "fre-8"], "did you mean free-8"),
        (["fast-table1", "--set", "budget.pases=3"], "did you mean passes"),
    ],
)
def test_unusable_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def test_listing_does_not_wait_for_torch(tmp_path):
    program = (
        "import sys\nfrom gratis.cli import main\n"
        "assert main(['reproduce']) == 0 and main(['reproduce', 'x']) == 2\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'slow import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gratis.train.run", interrupted)
    out = ["--scale", "smoke", "--out", str(tmp_path)]
    assert main(["reproduce", "fast-table1", *out]) == 130
    assert "go on with the same command" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_every_table_runs_at_smoke(name, tmp_path):
    record, complete = make(name, tmp_path)
    assert complete, [row.get("reason") for row in record["rows"]]
    for row in record["rows"]:
        assert row["conditions"].startswith("smoke: not a result")
        for column in TABLES[name].columns:
            shown = column.measured and column.measure not in SHIFTS
            cell = row["cells"][column.name]
            assert ("measured" in cell) == shown or cell["why"] == "no such phase"
