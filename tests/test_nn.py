"""Networks: the facts of the papers' architectures, normalisation, BatchNorm's statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.nn import (
    Normalize,
    PerImageStandardize,
    PreActResNet18,
    WideResNet32x10,
    mnist_net,
    parameters_by_decay,
    set_momentum,
    small_conv,
    untracked_statistics,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- architectures ----------------------------------------------------------------------------


def test_mnist_net_has_the_parameters_of_the_papers_table() -> None:
    conv1, conv2 = 16 * (1 * 4 * 4) + 16, 32 * (16 * 4 * 4) + 32
    full1, full2 = 1568 * 100 + 100, 100 * 10 + 10
    assert count(mnist_net(10)) == conv1 + conv2 + full1 + full2


def preact_block(before: int, out: int) -> int:
    projection = before * out if before != out else 0
    return 2 * before + before * out * 9 + 2 * out + out * out * 9 + projection


def test_preact_resnet18_has_the_parameters_of_the_authors_net() -> None:
    with torch.device("meta"):
        model = PreActResNet18(10)
    blocks = sum(preact_block(max(64, c // 2), c) + preact_block(c, c) for c in (64, 128, 256, 512))
    assert count(model) == 3 * 64 * 9 + blocks + 2 * 512 + 512 * 10 + 10 == 11_172_170


def test_wrn_has_the_parameters_of_the_authors_net() -> None:
    def unit(before: int, out: int) -> int:  # shortcuts have no weights
        return 2 * before + before * out * 9 + 2 * out + out * out * 9

    with torch.device("meta"):
        model = WideResNet32x10(10)
    stages = ((16, 160), (160, 320), (320, 640))
    units = sum(unit(before, out) + 4 * unit(out, out) for before, out in stages)
    assert count(model) == 3 * 16 * 9 + units + 2 * 640 + 640 * 10 + 10
    assert len(model.units) == 15


@pytest.mark.parametrize("size", [8, 28, 29, 32])
def test_networks_take_any_size_and_halve_it_rounding_up(size: int) -> None:
    x = torch.rand(2, 1, size, size)
    maps: list[torch.Size] = []
    for model in (PreActResNet18(7, 1, width=4), WideResNet32x10(7, 1, width=16)):
        model.norm.register_forward_hook(lambda _m, args, _out: maps.append(args[0].shape))
        assert model(x).shape == (2, 7)
    assert maps[0] == (2, 32, -(-size // 8), -(-size // 8))
    assert maps[1] == (2, 64, -(-size // 4), -(-size // 4))
    assert small_conv(7, 1, size)(x).shape == (2, 7)


def test_small_conv_halves_the_first_layer_of_larger_images_alone() -> None:
    assert small_conv(10, 1, 8)[0](torch.rand(1, 1, 8, 8)).shape[2:] == (8, 8)
    assert small_conv(10, 1, 32)[0](torch.rand(1, 1, 32, 32)).shape[2:] == (16, 16)


def test_a_preact_block_projects_its_raw_input() -> None:
    block = PreActResNet18(10, width=4).blocks[2]
    x = torch.randn(3, 4, 8, 8) - 1  # mostly below 0: an activated input would be another
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), F.conv2d(x, block.shortcut.weight, stride=2))


def test_preact_resnet_ends_in_batchnorm_and_relu() -> None:
    model = PreActResNet18(10, width=4).eval()
    x = torch.rand(2, 3, 8, 8)
    nn.init.zeros_(model.norm.weight)
    nn.init.constant_(model.norm.bias, -1.0)
    torch.testing.assert_close(model(x), model.linear.bias.expand(2, 10))
    nn.init.constant_(model.norm.bias, 1.0)
    expected = model.linear.bias + model.linear.weight.sum(dim=1)
    torch.testing.assert_close(model(x), expected.expand(2, 10))


def test_a_wide_unit_averages_and_pads_its_shortcut_with_zero_channels() -> None:
    unit = WideResNet32x10(10, width=16).units[5]  # 16 -> 32 channels, stride 2
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    out = unit(x)
    assert torch.equal(out[:, 8:24], F.avg_pool2d(x, 2))
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_only_the_first_wide_unit_activates_its_shortcut() -> None:
    units = WideResNet32x10(10, width=16).eval().units
    x = torch.randn(2, 16, 8, 8)
    for unit in units[:2]:
        nn.init.zeros_(unit.conv2.weight)
    running = (1 + 1e-3) ** -0.5  # BatchNorm at its start: mean 0, variance 1, epsilon 1e-3
    torch.testing.assert_close(units[0](x), F.leaky_relu(x * running, 0.1))
    torch.testing.assert_close(units[1](x), x)


def test_wrn_starts_and_forgets_as_the_authors_net() -> None:
    model = WideResNet32x10(10, width=32)
    weight = model.units[10].conv1.weight  # 64 -> 128 channels
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert model.linear.weight.abs().max().item() == pytest.approx((3 / 128) ** 0.5, rel=0.02)
    assert not model.linear.bias.any()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-3)}
    assert len(norms) == 31


def test_wrn_is_too_narrow_below_its_first_layer() -> None:
    with pytest.raises(ValueError, match="16 or more"):
        WideResNet32x10(10, width=8)


# --- normalisation ----------------------------------------------------------------------------


def test_normalize_subtracts_and_divides_channel_by_channel() -> None:
    x = torch.rand(2, 3, 4, 4)
    out = Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))(x)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        torch.testing.assert_close(out[:, channel], (x[:, channel] - mean) / std)


@pytest.mark.parametrize("layer", [Normalize((0.5,), (0.25,)), PerImageStandardize()])
def test_first_layers_stay_in_fp32_or_better(layer: nn.Module) -> None:
    x = torch.rand(2, 3, 4, 4)
    plain = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), plain)
        assert layer(x).dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.float32
    assert layer(x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="floats in"):
        layer((x * 255).to(torch.uint8))


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.5), (0.5,)), ((), ()), ((0.5,), (0.0,)), ((0.5,), (-1.0,))]
)
def test_normalize_refuses_what_it_cannot_divide_by(mean: tuple, std: tuple) -> None:
    with pytest.raises(ValueError, match=r"mean has|std is"):
        Normalize(mean, std)


def test_per_image_standardize_is_tensorflows_function_on_grey_levels() -> None:
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    x[1] = 0.5 + x[1] * 1e-6  # a deviation below TensorFlow's bound of 1 / sqrt(pixels)
    levels = 255 * x.flatten(1)
    deviation = levels.std(dim=1, correction=0).clamp(min=levels.shape[1] ** -0.5)
    expected = (levels - levels.mean(dim=1, keepdim=True)) / deviation[:, None]
    torch.testing.assert_close(PerImageStandardize()(x).flatten(1), expected)


def test_a_flat_image_has_a_finite_gradient() -> None:
    x = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    PerImageStandardize()(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# --- batch normalisation ----------------------------------------------------------------------


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_untracked_statistics_change_no_output_and_remember_nothing() -> None:
    model, x = small_conv(10, 1, 8).train(), torch.rand(4, 1, 8, 8)
    before = buffers(model)
    with untracked_statistics(model):
        untracked = model(x)
    assert all(torch.equal(before[name], after) for name, after in model.named_buffers())
    assert torch.equal(untracked, model(x))
    changed = [not torch.equal(before[name], after) for name, after in model.named_buffers()]
    assert all(changed)  # and outside they are remembered again


def test_untracked_statistics_leave_layers_in_eval_mode_alone() -> None:
    model, x = small_conv(10, 1, 8).eval(), torch.rand(4, 1, 8, 8)
    expected = model(x)
    with untracked_statistics(model):
        assert torch.equal(model(x), expected)


def test_untracked_statistics_restore_each_layers_own_setting_after_an_exception() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ValueError, match="2D or 3D"), untracked_statistics(model):
        model(torch.rand(4))  # wants [B, 2]
    assert [m.track_running_stats for m in model] == [True, False]


def test_momentum_is_the_weight_of_the_newest_batch() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3)), torch.randn(8, 3) + 5
    set_momentum(model, 0.25)
    model(x)
    torch.testing.assert_close(model[0].running_mean, 0.25 * x.mean(dim=0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        set_momentum(model, 1.5)


def test_biases_and_normalisation_are_exempt_from_decay() -> None:
    model = small_conv(10, 1, 8)
    decayed, exempt = parameters_by_decay(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed] == ["0.weight", "3.weight", "6.weight", "11.weight"]
    assert len(decayed) + len(exempt) == len(names)
    assert "11.bias" in {names[id(p)] for p in exempt}
    assert "1.weight" in {names[id(p)] for p in exempt}
