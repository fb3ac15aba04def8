"""The command line as a person meets it."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from gratis import terminal, train
from gratis.cli import main
from gratis.run import Run
from tests.recipes import tiny

SMALL = [
    "model.options.width=4", "check.attack=pgd-2", "check.images=32",
    "evaluation.attacks=[pgd-3-2]", "evaluation.limit=24",
]  # fmt: skip


def test_train_evaluate_report(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "digits", "--set", *SMALL, "budget.passes=2", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "fgsm-rs" in printed
    assert "pgd-3-2 at linf 0.2, 24 test images, checkpoint last" in printed
    assert "report.html" in printed
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000

    assert main(["evaluate", out, "--attack", "pgd-2", "--eps", "8/255", "--limit", "10"]) == 0
    assert main(["evaluate", out, "--attack", "pgd-2", "--eps", "8/255", "--limit", "10"]) == 0
    best = str(tmp_path / "run" / "checkpoints" / "best.pt")
    assert main(["evaluate", best, "--attack", "pgd-2", "--eps", "8/255", "--limit", "10"]) == 0
    run = Run.open(out)
    protocols = [
        (e["attack"], e["threat"]["eps"], e["images"]["count"], e["checkpoint"])
        for e in run.results["evaluations"]
    ]
    assert protocols == [
        ("pgd-3-2", 0.2, 24, "last"),
        ("pgd-2", 8 / 255, 10, "last"),
        ("pgd-2", 8 / 255, 10, "best"),
    ]
    budget = run.results["budget"]
    assert budget["metered_passes"] == budget["predicted_passes"]  # not those of `best`

    page = tmp_path / "page.html"
    assert main(["report", out, "--out", str(page)]) == 0
    assert page.exists()


def test_evaluating_again_replaces(tmp_path):
    run = train.run(tiny(passes=1), tmp_path / "run")
    first = run.results["evaluations"]
    assert main(["evaluate", str(run.path)]) == 0
    second = run.results["evaluations"]
    assert len(first) == len(second) == 1
    assert first[0]["robust"] == second[0]["robust"]


def test_compare_spends_the_same_on_each(tmp_path, capsys):
    out = tmp_path / "both"
    command = [
        "compare", "natural", "free-2", "--data", "digits", "--budget", "2.5",
        "--set", *SMALL, "--out", str(out),
    ]  # fmt: skip
    assert main(command) == 0
    assert (out / "report.html").exists()
    for name in ("natural", "free-2"):
        results = json.loads((out / name / "results.json").read_text())
        assert results["method"] == name
        assert 2.4 < results["budget"]["metered_passes"] <= 2.5
        assert results["evaluations"][0]["threat"] == {"norm": "linf", "eps": 0.2}
    capsys.readouterr()
    assert main(command) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert main(["report", str(out)]) == 0


def test_a_recipe_of_ones_own_with_own_data_and_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def data(split, root):\n"
        "    g = torch.Generator().manual_seed(int(split == 'test'))\n"
        "    x = torch.rand(200, 3, 5, 7, generator=g)\n"
        "    return x, (x[:, 0].mean((1, 2)) > 0.5).long()\n"
        "def model(classes, channels, image_size, hidden=4):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(),\n"
        "        torch.nn.Linear(105, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes))\n"
    )
    recipe = {
        "data": {"name": "mine:data", "batch_size": 20, "holdout": 0.2},
        "model": {"name": "mine:model", "options": {"hidden": 6}},
        "method": {"name": "free", "ball": {"norm": "l2", "eps": 0.1}, "replays": 2},
        "optimizer": {"learning_rate": 0.1},
        "budget": {"passes": 4},
        "check": {"attack": "pgd-1"},
        "evaluation": {"attacks": ["pgd-2"]},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "own.yaml"]) == 0
    assert (tmp_path / "runs" / "own" / "results.json").exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["train", "digitz"], "did you mean digits"),
        (["train", "none.yaml"], "no recipe file none.yaml"),
        (["train", "digits", "--set", "budget"], "key=value"),
        (["train", "digits", "--set", "budget.pases=3"], "did you mean passes"),
        (["train", "digits", "--set", "method=fre-8"], "did you mean free"),
        (["train", "digits", "--set", "method.ball.eps=8"], "8/255"),
        (["train", "digits", "--set", "method.ball.eps=8/0"], "8/0"),
        (["train", "digits", "--set", "data.batch_size=many"], "batch_size"),
        (["train", "digits", "--set", "evaluation.attacks=[pdg-3]"], "pgd-STEPS"),
        (["train", "mnist", "--set", "data.root=/nowhere"], "/nowhere"),
        (["compare", "natrual", "--data", "digits", "--budget", "3", "--out", "o"], "natural"),
        (["compare", "pgd", "--data", "digits", "--budget", "3", "--out", "o"], "pgd-7"),
        (["compare", "natural", "--data", "digits", "--budget", "0", "--out", "o"], "buys nothing"),
        (["compare", "natural", "--data", "digits", "--budget", "x", "--out", "o"], "x"),
        (["evaluate", "nowhere"], "no run directory"),
        (["evaluate", "nowhere.pt"], "no checkpoint"),
        (["evaluate", "nowhere", "--attack", "fgsm2"], "pgd-STEPS"),
        (["report", "nowhere"], "no run directory"),
    ],
)  # fmt: skip
def test_unusable_input_is_one_line(tmp_path, monkeypatch, capsys, command, reason):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert said.startswith("gratis: ")
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    "arguments",
    [["trian"], ["train"], ["evaluate", "r", "--eps", "8/x"], ["evaluate", "r", "--limit", "0"]],
)
def test_a_mistyped_command_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    assert main(["train", "digitz", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Training, "go", interrupted)
    assert main(["train", "digits", "--out", str(tmp_path / "run")]) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    # nothing was learned yet: what goes on may be another recipe
    resumed = ["--set", *SMALL, "budget.passes=1", "--out", str(tmp_path / "run"), "--resume"]
    assert main(["train", "digits", *resumed]) == 0
    assert main(["train", "digits", *resumed[:-1], "--resume", "--set", "seed=4"]) == 2
    assert "differs in" in capsys.readouterr().err


def test_a_diverged_run_is_status_1(tmp_path, capsys):
    settings = [
        *SMALL,
        "budget.passes=3",
        "optimizer.learning_rate=1e20",
        "schedule.shape=constant",
    ]
    assert main(["train", "digits", "--set", *settings, "--out", str(tmp_path / "run")]) == 1
    assert "lower optimizer.learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["recipes"],
        ["train", "digitz"],
        ["train", "none.yaml"],
        ["train", "digits", "--set", "budget.pases=3"],
        ["compare", "natrual", "--data", "digits", "--budget", "3", "--out", "o"],
        ["evaluate", "nowhere"],
        ["evaluate", "nowhere", "--attack", "fgsm2"],
    ],
    ids=" ".join,
)
def test_quick_answers_do_not_wait_for_torch(tmp_path, arguments):
    program = (
        "import sys\nfrom gratis.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'slow import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_training_needs_none_of_the_command_lines_libraries(tmp_path):
    """On a bare GPU machine there are torch, torchvision, numpy and PyYAML alone."""
    blocked = ["rich", "jinja2", "matplotlib", "timm", "sklearn"]
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def data(split, root):\n"
        "    return torch.rand(40, 1, 8, 8), torch.arange(40) % 4\n"
    )
    program = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        "import gratis\n"
        "from gratis import recipe, train\n"
        "run = train.run(recipe.load('digits', ['data.name=mine:data', 'data.batch_size=10',"
        " 'budget.passes=2', 'evaluation.attacks=[pgd-2]', 'check.attack=pgd-1']), 'run')\n"
        "print(run.results['evaluations'][0]['robust']['accuracy'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_a_pickle_with_a_payload_is_refused(tmp_path, capsys):
    run = train.run(tiny(passes=1), tmp_path / "run")

    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    for name in ("last", "previous"):
        torch.save({"model": Payload()}, run.checkpoint_path(name))
    assert main(["evaluate", str(run.path)]) == 2
    assert "loads weights only" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_mistyped_setting_leaves_nothing_in_the_way(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "digits", "--out", str(out), "--set", "data.limit=200", "budget.passes=2"]
    assert main([*command, "model.name=small-cnn"]) == 2
    assert "small-conv" in capsys.readouterr().err
    assert main([*command, "evaluation.limit=20", "evaluation.attacks=[fgsm]"]) == 0
    assert Run.open(out).results is not None


def test_what_speaks_of_attacks_is_not_ignored_where_none_is_made(tmp_path, capsys):
    run = train.run(tiny("natural", passes=1), tmp_path / "run")
    command = ["evaluate", str(run.path), "--shift", "corruptions=generated"]
    for flags in (["--eps", "4/255"], ["--union"], ["--checks", "full"], ["--save-adversarial"]):
        assert main([*command, *flags]) == 2
        assert f"{flags[0]}: said of attacks" in capsys.readouterr().err


def test_what_is_wrong_with_the_last_method_is_said_before_the_first(tmp_path, capsys):
    command = ["compare", "natural", "pgd-7", "--data", "digits", "--budget", "1"]
    out = tmp_path / "runs"
    assert main([*command, "--out", str(out), "--set", "data.holdout=0"]) == 2
    assert "data.holdout is 0" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["lr{0.1}", "[v2]", "a[/x]"])
def test_names_with_braces_and_brackets_are_names(tmp_path, capsys, name):
    with terminal.bar(name) as progress:
        train.run(tiny("natural", passes=1), tmp_path / "run", progress=progress)
    assert f"{name}: train" in capsys.readouterr().err
