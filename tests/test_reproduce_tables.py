"""The papers' tables: what is printed, that every row's path exists, and files that do not fit."""

import re

import pytest

from gratis.recipe import from_plain
from gratis.reproduce import papers
from gratis.reproduce.columns import Column
from gratis.reproduce.outcome import _measured
from gratis.reproduce.papers import SCALES
from gratis.reproduce.settings import attack, values
from tests.reports import evaluation
from tests.tables import MINIMAL, TABLES, assert_refused, recipe

SCALED = ("paper", "cpu")

every_row = pytest.mark.parametrize(
    ("table", "row"),
    [(table, row) for table in TABLES.values() for row in table.rows],
    ids=lambda part: part.name,
)


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
    assert printed("free-cifar100", "natural")["pgd-100"] == 0.0
    assert "pgd-20" not in printed("free-cifar10", "natural"), "not found is left out"
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


def test_the_whole_of_coco_is_found_however_its_place_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "boxes" / "coco128").mkdir(parents=True)
    given = ("data.root=~/boxes",)
    found = recipe("advprop-table7", "fast-advprop", "paper", given).data
    assert (found.root, found.test_split) == (str(tmp_path / "boxes" / "coco128"), "train")
    (tmp_path / "boxes" / "annotations").mkdir()
    found = recipe("advprop-table7", "fast-advprop", "paper", given).data
    assert (found.root, found.test_split) == ("~/boxes", "test")


@pytest.mark.parametrize("given", ["data=cifar10", "data={root: X}"])
def test_data_that_is_none_is_explained(given):
    with pytest.raises(ValueError, match="data"):
        recipe("fast-table3", "dawn-free", "cpu", (given,))


def test_table_1_keeps_its_steps_in_shares_of_eps_on_mnist():
    for name in ("fgsm-zero", "fgsm-previous", "fgsm-alpha-8", "fgsm-alpha-10", "fgsm-alpha-16"):
        paper, cpu = (
            recipe("fast-table1", name, scale).build_method() for scale in ("paper", "cpu")
        )
        shares = [m.resolved_step_size / m.ball.eps for m in (paper, cpu)]
        assert shares[0] == pytest.approx(shares[1])
        assert (paper.start, paper.steps) == (cpu.start, cpu.steps)
    paper, cpu = (recipe("fast-table1", "pgd-7", scale).build_method() for scale in SCALED)
    assert paper.step_size / paper.ball.eps == pytest.approx(cpu.step_size / cpu.ball.eps)


def test_table_1_is_measured_by_the_papers_attack_on_its_data():
    for name in ("fgsm-alpha-10", "free-8", "pgd-7"):
        attacks = [recipe("fast-table1", name, scale).evaluation.attacks for scale in SCALED]
        assert attacks == [("pgd-50-10:alpha=2/255",), ("pgd-50-10:alpha=0.01",)]
        shapes = [recipe("fast-table1", name, scale).schedule.shape for scale in SCALED]
        assert shapes[1] == "cyclic", "which the note says"
    table, facts = TABLES["fast-table1"], {"test_images": 1, "training_images": 1}
    (clean, robust) = table.columns
    assert attack(robust, "cpu") == "pgd-50-10:alpha=0.01"
    assert attack(robust, "smoke") == "pgd-2-2:alpha=2/255"
    assert attack(clean, "cpu") is None
    row = values(table, table.rows[0], "cpu")
    measured = evaluation(attack="pgd-50-10:alpha=0.01", threat={"norm": "linf", "eps": 0.3})
    measured["images"]["count"] = 1000
    results = {"data": {"images": 10_000}, "evaluations": [measured]}
    assert _measured(robust, "cpu", row, results, facts)["measured"] == pytest.approx(71.2)


def test_what_is_no_attack_is_none_at_a_scale_either():
    with pytest.raises(ValueError, match="pgdd"):
        Column("a", measure="pgd-2", cpu="pgdd-2")


# --- a table of one's own


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
    assert_refused(MINIMAL, before, after, said)


def test_a_table_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    own = papers.read(str(tmp_path / "mine.yaml"))
    assert (own.name, own.rows[0].printed) == ("mine", {"clean": 12.5})
    (tmp_path / "torn.yaml").write_text("title: [")
    with pytest.raises(ValueError, match="is no YAML"):
        papers.read(str(tmp_path / "torn.yaml"))


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
