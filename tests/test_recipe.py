"""Recipes: what is shipped loads, what is changed changes that alone, mistakes are named."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gratis.balls import L2, Linf
from gratis.methods import METHODS, Free, Natural, PGDTraining
from gratis.names import METHOD_NUMBERS
from gratis.recipe import Recipe, from_plain, load, override, read, shipped, with_method

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "model": {"name": "small-conv"},
    "method": {"name": "free", "replays": 4, "ball": {"norm": "l2", "eps": "128/255"}},
    "optimizer": {"learning_rate": 0.05},
    "budget": {"passes": 4},
}


def small(*settings: str) -> Recipe:
    return from_plain(override(SMALL, settings))


def example_name(method: str) -> str:
    return "-".join([method, *("34"[: len(METHOD_NUMBERS[method])])])


# --- reading


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads_and_reads_back(name: str) -> None:
    recipe = load(name)
    recipe.check_method()
    assert recipe.detects or recipe.evaluation_balls()
    assert recipe.about.title
    assert recipe.about.paper
    assert from_plain(yaml.safe_load(yaml.safe_dump(recipe.plain()))).plain() == recipe.plain()


def test_digits_is_shipped() -> None:
    assert {"digits", "cifar10"} <= set(shipped())


def test_a_file_is_named_after_itself_unless_it_says(tmp_path: Path) -> None:
    values = {k: v for k, v in SMALL.items() if k != "name"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load(path).name == "mine"
    path.write_text(yaml.safe_dump(SMALL))
    assert load(str(path)).name == "small"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", r"mine\.yaml is no YAML"),
        (b"\xff\xfe\x00", r"mine\.yaml is no YAML"),
        (b"- 1\n- 2\n", r"mine\.yaml should hold a mapping of keys"),
        (b"", r"mine\.yaml should hold a mapping of keys"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'digist' \(did you mean digits\?\)"):
        read("digist")
    with pytest.raises(ValueError, match=r"no recipe file missing\.yaml"):
        read("missing.yaml")
    with pytest.raises(ValueError, match=r"no recipe file some/where"):
        read("some/where")


# --- there and back


@pytest.mark.parametrize("method", sorted(METHODS))
def test_plain_reads_back_to_the_same_recipe(method: str) -> None:
    recipe = small(
        f"method={example_name(method)}", "evaluation.eps=[0.1, 8/255]", "guard.mode=off"
    )
    written = yaml.safe_load(yaml.safe_dump(recipe.plain()))
    again = from_plain(written)
    assert again.plain() == recipe.plain() == written
    assert again.build_method() == from_plain(again.plain()).build_method()
    assert type(again.build_method()) is type(recipe.build_method())
    assert again.evaluation_balls() == recipe.evaluation_balls()
    assert again.evaluation == recipe.evaluation


def test_plain_fills_in_every_default_and_the_resolved_step() -> None:
    values = small().plain()
    assert values["method"]["step_size"] == "128/255"
    assert values["method"]["ball"] == {"norm": "l2", "eps": "128/255", "low": 0.0, "high": 1.0}
    assert values["engine"]["precision"] == "fp32"
    assert values["schedule"]["drops"] == [0.5, 0.75]
    assert values["budget"] == {"passes": 4.0, "data_passes": None}
    pgd = small("method=pgd-7", "method.ball.norm=linf", "method.ball.eps=8/255")
    assert pgd.plain()["method"]["step_size"] == "2/255"


def test_natural_training_keeps_the_ball_it_is_judged_under() -> None:
    recipe = small("method=natural")
    assert recipe.plain()["method"]["ball"]["norm"] == "l2"
    assert isinstance(recipe.build_method(), Natural)
    assert recipe.evaluation_balls() == [L2(128 / 255)]
    assert not recipe.defends
    assert small().defends


# --- changing


def test_override_changes_one_key_and_keeps_the_others() -> None:
    before = copy.deepcopy(SMALL)
    after = override(SMALL, ["optimizer.momentum=0.5", "data.batch_size=7", "seed=3"])
    assert after["optimizer"] == {"learning_rate": 0.05, "momentum": 0.5}
    assert after["data"] == {"name": "digits", "batch_size": 7}
    assert after["seed"] == 3
    assert {k: after[k] for k in ("method", "budget", "model")} == {
        k: SMALL[k] for k in ("method", "budget", "model")
    }
    assert before == SMALL


def test_override_reaches_deep_without_touching_what_it_was_given() -> None:
    before = copy.deepcopy(SMALL)
    after = override(SMALL, ["method.ball.eps=0.25", "model.options.width=4"])
    assert after["method"]["ball"] == {"norm": "l2", "eps": 0.25}
    assert after["model"]["options"] == {"width": 4}
    assert before == SMALL


def test_the_last_of_two_settings_counts() -> None:
    assert small("seed=1", "seed=2").seed == 2


def test_values_are_read_as_yaml() -> None:
    recipe = small(
        "guard.mode=off",
        "optimizer.nesterov=true",
        "optimizer.weight_decay=5e-4",
        "evaluation.attacks=[pgd-5, 'pgd-10:alpha=1/255']",
        "budget.passes=null",
        "budget.data_passes=5/3",
        "data.root=~",
    )
    assert recipe.guard.mode == "off"
    assert recipe.optimizer.nesterov is True
    assert recipe.optimizer.weight_decay == 5e-4
    assert recipe.evaluation.attacks == ("pgd-5", "pgd-10:alpha=1/255")
    assert (recipe.budget.passes, recipe.budget.data_passes) == (None, 5 / 3)
    assert recipe.data.root is None


def test_a_method_by_name_keeps_the_ball_and_nothing_else() -> None:
    after = override(SMALL, ["method=pgd-7"])
    assert after["method"] == {"name": "pgd", "steps": 7, "ball": SMALL["method"]["ball"]}
    assert from_plain(after).build_method() == PGDTraining(L2(128 / 255), 7)
    free = small("method=free-8", "method.ball.eps=0.5").build_method()
    assert free == Free(L2(0.5), replays=8)
    assert with_method({}, "fgsm") == {"name": "fgsm"}


def test_a_ball_may_be_a_bare_radius() -> None:
    assert small("method.ball=8/255").build_method() == Free(Linf(8 / 255), replays=4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", r"--set 'seed' should read key=value"),
        ("=3", r"should read key=value"),
        ("seed.low=3", r"--set seed\.low: seed holds 3, not further keys"),
        ("method=fre-8", r"did you mean free"),
    ],
)
def test_settings_that_cannot_be_applied_are_explained(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override({**SMALL, "seed": 3}, [setting])


# --- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimiser.name=sgd"], r"unknown key optimiser \(did you mean optimizer\?\)"),
        (["optimizer.lr=0.1"], r"unknown key optimizer\.lr"),
        (["optimizer.name=sdg"], r"optimizer\.name: 'sdg' \(did you mean sgd\?\)"),
        (["optimizer.learning_rate=high"], r"optimizer\.learning_rate: 'high' is no number"),
        (["data.batch_size=0"], r"data: batch_size=0 must be at least 1"),
        (["data.batch_size=1.5"], r"data\.batch_size: 1\.5 is no whole number"),
        (["data.name=null"], r"data\.name: None should be text"),
        (["data.holdout=-1"], r"holdout=-1"),
        (["data.holdout=0"], r"guard checks held-out training images"),
        (["budget.passes=null"], r"give one of passes .* and data_passes"),
        (["budget.passes=0"], r"buys nothing"),
        (["budget.passes=.inf"], r"budget\.passes: inf is no finite number"),
        (["schedule.peak=1"], r"peak=1\.0 must lie between 0 and 1"),
        (["check.every=0"], r"check: every and images must be positive"),
        (["check.attack=pdg-10"], r"no attack 'pdg-10'"),
        (["evaluation.attacks=[pgd-10, apgd]"], r"no attack 'apgd'"),
        (["evaluation.attacks=[]"], r"evaluation: .*at least one attack"),
        (["evaluation.limit=0"], r"evaluation: limit=0 must be at least 1"),
        (["guard.mode=on"], r"guard\.mode: True"),
        (["guard.mode=earlystop"], r"did you mean early-stop"),
        (["engine.precision=fp8"], r"engine\.precision: 'fp8'"),
        (["engine=3"], r"engine: 3 should be a mapping"),
        (
            ["data={name: folder, stored: 72, image_size: 64, test_split: train}"],
            r"test_split=train judges on training images in memory",
        ),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_is_explained(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(*settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.name=fre"], r"method\.name: 'fre' \(did you mean free\?\)"),
        (["method.replay=3"], r"unknown key method\.replay \(did you mean replays\?\)"),
        (["method.replays=0"], r"method: replays=0 must be at least 1"),
        (["method.step_size=-1"], r"method: step_size=-1"),
        (["method.ball.norm=linf", "method.ball.eps=8"], r"method\.ball: eps=8 .*eps=8/255"),
        (["method.ball.norm=l0"], r"method\.ball\.norm: 'l0'"),
        (["method.ball.radius=1"], r"unknown key method\.ball\.radius"),
        (["method.ball=null"], r"method\.ball\.eps: 'None' is no number"),
        (["method=fgsm", "method.start=randm"], r"start: 'randm' \(did you mean random\?\)"),
    ],
    ids=str,
)
def test_a_method_that_cannot_be_is_explained(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(*settings).build_method()


def test_a_method_without_a_ball_names_the_missing_key() -> None:
    with pytest.raises(ValueError, match=r"missing key method\.ball"):
        from_plain({**SMALL, "method": {"name": "free"}}).build_method()
    with pytest.raises(ValueError, match=r"no threat model .*method\.ball"):
        from_plain({**SMALL, "method": {"name": "natural"}}).evaluation_balls()


@pytest.mark.parametrize("key", ["data", "model", "method", "optimizer", "budget", "name"])
def test_a_missing_section_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"missing key {key}"):
        from_plain({k: v for k, v in SMALL.items() if k != key})


# --- what it is judged under


def test_evaluation_takes_the_methods_ball_unless_it_says_otherwise() -> None:
    assert small().evaluation_balls() == [L2(128 / 255)]
    assert small("evaluation.eps=[0.1, 8/255]").evaluation_balls() == [L2(0.1), L2(8 / 255)]
    other = small("evaluation.norm=linf", "evaluation.eps=8/255")
    assert other.evaluation_balls() == [Linf(8 / 255)]


# --- quick answers


@pytest.mark.parametrize("module", ["recipe", "names", "schema", "run", "report", "cli"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    code = f"import sys, gratis.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_and_a_mistyped_recipe_do_not_import_torch() -> None:
    code = (
        "import sys, gratis; gratis.__version__; dir(gratis)\n"
        "from gratis.recipe import load\n"
        "try: load('digits', ['optimizer.lr=1'])\n"
        "except ValueError: sys.exit('torch' in sys.modules)\n"
        "sys.exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
