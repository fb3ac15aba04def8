"""Starting from weights made elsewhere: what is taken, what stays, what is refused."""

import copy
import json

import pytest
import torch
from torch import nn

from gratis import Learner, Linf, add_aux, fgsm_rs, train
from gratis.guard import Outcome, Recovery
from gratis.nn import group_norms
from gratis.nn.freezing import behind_normalize, freeze, head_of
from gratis.passes import Batch
from gratis.prober import Prober
from gratis.report import write_report
from gratis.setting import build_loaders, learner, network, planned
from gratis.training_data import training_data
from gratis.transfer import begin
from gratis.weights import sha256, weights_of
from tests.dying import assert_same, dies, final_state
from tests.recipes import tiny
from tests.small_net import small_net, some_batches

SHORT = "evaluation={attacks: [pgd-1], limit: 4}"
HEAD = ("11.weight", "11.bias")
"""small-conv's linear layer; 1, 4 and 7 are its norms."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return train.run(
        tiny("fgsm-rs", SHORT, "engine.ema=0.5", passes=2), tmp_path_factory.mktemp("s") / "run"
    )


def begun(*settings, method="fgsm-rs"):
    """(a network as the recipe starts it, what is logged of that)."""
    recipe = tiny(method, *settings)
    images = training_data(recipe).training
    model = network(recipe, images)
    return model, begin(recipe, model, len(images.classes))


def averaged(run):
    return weights_of(run.load_checkpoint()[0])


# --- what is taken


def test_averaged_weights_of_a_run_are_taken_bitwise(source):
    model, record = begun(f"model.start={source.path}")
    assert_same(dict(model.state_dict()), averaged(source))
    assert not torch.equal(
        averaged(source)["0.weight"], final_state(source.path)["model"]["0.weight"]
    )
    digest = sha256(averaged(source))
    assert record == {
        "path": str(source.path),
        "checkpoint": "last",
        "weights_sha256": digest,
        "new_head": None,
    }


def test_a_new_head_is_the_recipes_own_and_the_body_the_sources(source):
    model, record = begun(f"model.start={source.path}", "model.new_head=true")
    fresh = network(tiny(), training_data(tiny()).training).state_dict()
    assert record["new_head"] == "11"
    for name, value in model.state_dict().items():
        expected = fresh if name in HEAD else averaged(source)
        assert torch.equal(value, expected[name]), name


def three_classes(split, root):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (90, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return x, torch.arange(90) % 3


THREE = ("data.name=tests.test_transfer:three_classes", "data.batch_size=20", "data.holdout=10")


def test_other_classes_bring_a_new_head_by_themselves(source):
    model, record = begun(f"model.start={source.path}", *THREE)
    assert record["new_head"] == "11"
    assert model.state_dict()["11.weight"].shape[0] == 3
    assert torch.equal(model.state_dict()["0.weight"], averaged(source)["0.weight"])


@pytest.mark.parametrize("wrapped", [lambda w: w, lambda w: {"state_dict": w}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_weights_is_taken_however_it_is_wrapped(tmp_path, source, wrapped, prefix):
    weights = {f"{prefix}{name}": value for name, value in averaged(source).items()}
    torch.save(wrapped(weights), tmp_path / "w.pt")
    model, record = begun(f"model.start={tmp_path / 'w.pt'}")
    assert_same(dict(model.state_dict()), averaged(source))
    assert record["checkpoint"] is None
    assert record["weights_sha256"] == sha256(averaged(source))


def test_weights_for_a_normalised_network_need_its_normalisation(tmp_path):
    own = ("model.mean=[0.25]", "model.std=[0.5]")
    run = train.run(tiny("fgsm-rs", SHORT, *own, passes=1.7), tmp_path / "run")
    model, _ = begun(f"model.start={run.path}", *own)
    assert_same(dict(model.state_dict()), averaged(run))
    for settings in ([], ["model.mean=[0.3]", "model.std=[0.5]"]):
        with pytest.raises(ValueError, match=r"model.mean=\[0.25\] and model.std=\[0.5\]"):
            begun(f"model.start={run.path}", *settings)


def test_weights_without_normalisation_go_behind_the_recipes(source):
    model, _ = begun(f"model.start={source.path}", "model.mean=[0.25]", "model.std=[0.5]")
    assert_same(dict(behind_normalize(model).state_dict()), averaged(source))
    assert model.normalize.mean.item() == 0.25


def test_norm_branches_come_and_go(tmp_path, source):
    model, _ = begun(f"model.start={source.path}", method="fast-advprop")
    state, theirs = model.state_dict(), averaged(source)
    for branch in ("main_norm", "aux_norm"):
        assert torch.equal(state[f"1.{branch}.running_mean"], theirs["1.running_mean"])
    torch.save(state, tmp_path / "w.pt")
    plain, _ = begun(f"model.start={tmp_path / 'w.pt'}")
    assert_same(dict(plain.state_dict()), theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.options.width=8"], r"other shapes 0.weight is \[4, 1, 3, 3\] there and \[8, 1"),
        (
            ["model.name=resnet9", "model.options={width: 4}"],
            r"do not fit ResNet9: it lacks stem.weight, .* has 0.weight, .* and \d+ more too many",
        ),
    ],
)
def test_another_network_is_refused_by_the_names_of_tensors(source, settings, message):
    with pytest.raises(ValueError, match=message):
        begun(f"model.start={source.path}", *settings)


def test_a_start_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"no run directory or file .*nowhere"):
        begun("model.start=nowhere")
    with pytest.raises(ValueError, match="is no run directory"):
        begun(f"model.start={tmp_path}")
    with pytest.raises(ValueError, match="without a start the whole network is new"):
        tiny("fgsm-rs", "model.new_head=true")


# --- what stays


def frozen_run(tmp_path, source, *settings, method="fgsm-rs"):
    start = (f"model.start={source.path}", "model.new_head=true")
    recipe = tiny(method, SHORT, *start, *settings)
    return train.run(recipe, tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_all_but_the_head_stay_bitwise(tmp_path, source, optimizer):
    more = ("model.freeze=all-but-head", "engine.ema=0.7", "engine.probe_norm=tracked")
    run = frozen_run(tmp_path, source, *more, f"optimizer.name={optimizer}")
    theirs, fresh = averaged(source), network(tiny(), training_data(tiny()).training).state_dict()
    for state in (final_state(run.path)["model"], averaged(run)):
        for name, value in state.items():
            assert torch.equal(value, theirs[name]) == (name not in HEAD), name
        assert not torch.equal(state["11.weight"], fresh["11.weight"])
    kept = final_state(run.path)["optimizer"]["param_groups"]
    assert sum(len(group["params"]) for group in kept) == 2


def test_named_parts_stay_and_the_others_learn(tmp_path, source):
    run = frozen_run(tmp_path, source, "model.freeze=['0','1','4.weight']")
    state, theirs = final_state(run.path)["model"], averaged(source)
    still = {name for name, value in state.items() if torch.equal(value, theirs[name])}
    assert still == {name for name in state if name.split(".")[0] in "01"} | {
        "4.weight",
        *(n for n in theirs if n.endswith("num_batches_tracked") and n.startswith("1.")),
    }


def test_frozen_norms_ignore_train_and_copies_do_too():
    net = small_net()
    freeze(net, ["1"], 4)
    assert not net.train()[1].training
    assert net[2].training
    assert not copy.deepcopy(net).train()[1].training
    learned = copy.deepcopy(net)[1]
    assert learned.train() is learned  # the copy's own method, not the original's


@pytest.mark.parametrize("prepare", [add_aux, lambda net: group_norms(net, 2)])
def test_norm_branches_are_frozen_with_their_norm(prepare):
    net = prepare(small_net())
    freeze(net, ["1"], 4)
    before = copy.deepcopy(net[1].state_dict())
    x, _ = some_batches()[0]
    net.train()(x)
    assert_same(dict(net[1].state_dict()), dict(before))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["7"], r"no module or parameter '7'; it consists of 0, 1, 2, 3, 4, 5"),
        (["0", "1", "5"], "nothing would be left to train"),
    ],
)
def test_wrong_names_are_explained(names, message):
    with pytest.raises(ValueError, match=message):
        freeze(small_net(), names, 4)


def test_the_head_is_the_last_layer_with_an_output_for_each_class():
    assert head_of(small_net(), 4) == "5"
    assert head_of(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), 3) == "2"
    with pytest.raises(ValueError, match="no linear layer with 7 outputs"):
        head_of(small_net(), 7)


def test_yopo_refuses_a_frozen_first_layer(tmp_path):
    recipe = tiny("yopo-2-2", "model.freeze=['0']")
    with pytest.raises(ValueError, match="the first layer is frozen"):
        train.run(recipe, tmp_path / "run")


# --- what goes on working


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("norm", ["batch", "tracked", "eval"])
def test_a_probe_leaves_every_parameter_and_mode_as_it_was(norm, compiled):
    net = small_net().train()
    freeze(net, ["0", "1"], 4)
    prober = Prober(net, norm=norm)
    if compiled:
        prober.forward = lambda x: net(x)  # what compiled code is treated as
    wanted = [p.requires_grad for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    state = copy.deepcopy(net.state_dict())
    x, y = some_batches()[0]
    assert prober(x, y).abs().sum() > 0
    prober.logits(x)
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert_same(dict(net.state_dict()), dict(state))


def test_learning_fills_the_gradients_of_what_is_trained_alone():
    net = small_net()
    freeze(net, ["0", "1"], 4)
    engine = Learner(net, torch.optim.SGD(net[5].parameters(), 0.1), seed=0)
    engine.fit(fgsm_rs(Linf(0.1)), Batch(*some_batches()[0]))
    assert [p.grad is not None for p in net.parameters()] == [False] * 3 + [True] * 2


def test_a_collapse_restores_the_start(source):
    recipe = tiny("fgsm", f"model.start={source.path}", "model.freeze=all-but-head")
    data = training_data(recipe)
    model, _ = begun(f"model.start={source.path}", "model.freeze=all-but-head", method="fgsm")
    loader = build_loaders(recipe, data, torch.device("cpu"))[0]
    engine = learner(recipe, model, planned(recipe, [loader], recipe.build_method()))
    recovery = Recovery(64, 10)
    recovery.begin(engine)
    engine.fit(recipe.build_method(), Batch(*next(loader.epoch(0))))
    engine.schedule = None
    engine.fit(recipe.build_method(), Batch(*next(loader.epoch(1))))
    assert recovery.look(Outcome(0.9, 0.0), 0.9, engine, recipe.build_method(), left=9)
    assert_same(dict(engine.model.state_dict()), averaged(source))


def test_resuming_needs_no_source_and_the_log_says_what_it_was(tmp_path, source):
    path = tmp_path / "source"
    path.symlink_to(source.path)
    start = (f"model.start={path}", "model.new_head=true", "model.freeze=['0']")
    recipe = tiny("fgsm-rs", SHORT, *start, "engine.checkpoint_seconds=0")
    whole = train.run(recipe, tmp_path / "whole")
    with dies(15):
        train.run(recipe, tmp_path / "cut")
    path.unlink()
    cut = train.run(recipe, tmp_path / "cut", resume=True)
    assert_same(final_state(whole.path), final_state(cut.path))
    for run in (whole, cut):
        (event,) = [record for record in run.log() if record["kind"] == "start"]
        assert event["path"] == str(path)
        assert event["weights_sha256"] == sha256(averaged(source))
        results = json.loads((run.path / "results.json").read_text())
        assert results["start"]["weights_sha256"] == event["weights_sha256"]
    write_report([cut], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert f"<code>{path}</code>, checkpoint last (SHA-256 {event['weights_sha256'][:16]})" in page
