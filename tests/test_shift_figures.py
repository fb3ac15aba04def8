"""The figures of images from another distribution, in closed form: mCE, relative mCE, means."""

import pytest
import torch

from gratis.data.corruptions import COMMON, EXTRA, SEVERITIES
from gratis.evaluate.shift import (
    ALEXNET,
    ALEXNET_CLEAN,
    Answer,
    answer,
    corruption_figures,
    normalised,
)
from tests.shifted_images import SIDE


def alexnets(images=50_000):
    """Cells whose errors have AlexNet's means."""
    found = {}
    for name, error in ALEXNET.items():
        total = round(error * 5 * images)
        assert total == pytest.approx(error * 5 * images, abs=1e-6), "a whole number of images"
        for severity in SEVERITIES:
            part = total // 5 + (severity <= total % 5)
            found[name, severity] = Answer(images, part)
    return found


def test_alexnets_own_cells_give_100(monkeypatch):
    monkeypatch.setattr("gratis.evaluate.shift.clopper_pearson", lambda *_: (0.0, 1.0))
    figures = corruption_figures(alexnets())
    found = normalised(figures, ALEXNET_CLEAN)
    assert found["mce"] == pytest.approx(1, abs=1e-12)
    assert found["relative_mce"] == pytest.approx(1, abs=1e-12)
    assert found["ce"] == pytest.approx(dict.fromkeys(COMMON, 1.0), abs=1e-12)
    assert figures["mean_error"] == pytest.approx(0.788993, abs=1e-6)


def test_alexnets_clean_error_is_what_torchvision_states_of_the_same_weights():
    from torchvision.models import AlexNet_Weights  # slow to import

    stated = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert round(1 - stated / 100, 3) == ALEXNET_CLEAN


def test_the_extra_four_never_enter_mce(monkeypatch):
    monkeypatch.setattr("gratis.evaluate.shift.clopper_pearson", lambda *_: (0.0, 1.0))
    extra = {(name, severity): Answer(50_000, 0) for name in EXTRA for severity in SEVERITIES}
    figures = corruption_figures({**extra, **alexnets()})
    assert normalised(figures, None)["mce"] == pytest.approx(1, abs=1e-12)
    assert figures["mean_error"] == pytest.approx(0.788993, abs=1e-6)
    assert figures["mean_of"] == 15
    assert figures["mean_error_19"] == pytest.approx(0.788993 * 15 / 19, abs=1e-6)
    assert "mean_error_19" not in corruption_figures(alexnets())


def test_answers_that_are_no_numbers_are_wrong():
    batch = (torch.zeros(3, 3, SIDE, SIDE), torch.tensor([0, 1, 2]))
    none = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    torch.nn.init.constant_(none[1].weight, torch.nan)
    assert answer(none, [batch], expected=3) == Answer(3, 3)
    masked = answer(none, [batch], expected=3, columns=torch.tensor([0, 1, 2]))
    assert masked == Answer(3, 3, 0, 3)


def test_a_cell_without_images_has_no_error():
    with pytest.raises(ValueError, match="no image"):
        Answer(0, 0).error()
