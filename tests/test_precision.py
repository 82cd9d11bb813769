"""Half precision is measured before it is used: what is imitated is said, and auto takes what is
faster."""

import warnings

import clipn_job
import pytest
import torch
from learner import squares

from oodnb.models import backbone
from oodnb.backbones import half_factor, is_native, load_backbone, resolve_precision, tiny_clip
from oodnb.methods.coop import CoOpSettings, fit_coop

CPU = torch.device("cpu")


@pytest.fixture
def cpu_with(monkeypatch):
    """A CPU whose products in half precision take so many times as long."""
    backbone._warn_of_imitation.cache_clear()
    yield lambda factor: monkeypatch.setattr(backbone, "half_factor", lambda precision: factor)
    backbone._warn_of_imitation.cache_clear()


@pytest.mark.parametrize(
    "factor, taken", [(0.4, "bf16"), (1.0, "bf16"), (1.01, "fp32"), (70.0, "fp32")]
)
def test_auto_is_what_is_faster_and_its_name_is_kept(cpu_with, factor, taken):
    cpu_with(factor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = load_backbone("tiny-vit", device="cpu", precision="auto")
    assert backbone.precision == taken and f"precision='{taken}'" in repr(backbone)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_imitation_is_said_once(cpu_with, precision):
    cpu_with(69.4)
    with pytest.warns(
        UserWarning,
        match=(
            f"'cpu' has no units for {precision} .* takes 69 times as long as in fp32. Take "
            "precision='fp32'"
        ),
    ) as heard:
        for _ in range(2):
            assert tiny_clip("vit_a", device="cpu", precision=precision).precision == precision
    assert len(heard) == 1 and not is_native(precision, CPU)


def test_what_the_processor_has_is_not_warned_of_though_slower(cpu_with):
    cpu_with(1.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("bf16", CPU) == "bf16" and is_native("bf16", CPU)


def test_fp32_measures_nothing(monkeypatch):
    monkeypatch.setattr(backbone, "half_factor", lambda precision: pytest.fail("measured"))
    assert load_backbone("tiny-vit", device="cpu").precision == "fp32"


@pytest.mark.parametrize("native, taken", [(True, "bf16"), (False, "fp32")])
def test_nvidia_cards_are_asked(monkeypatch, native, taken):
    asked = []
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: (asked.append(including_emulation), native)[1],
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: warnings.catch_warnings())
    assert resolve_precision("auto", torch.device("cuda")) == taken and asked == [False]
    assert is_native("fp16", torch.device("cuda"))
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


def test_the_measurement_is_made_once():
    assert half_factor("bf16") == half_factor("bf16") > 0


@pytest.mark.parametrize("wrong", ["half", "FP32", "", None, torch.bfloat16, 16])
def test_other_words_are_refused(wrong):
    for refused in (
        lambda: load_backbone("tiny-vit", device="cpu", precision=wrong),
        lambda: resolve_precision(wrong, CPU),
    ):
        with pytest.raises(
            ValueError, match="choose one of fp32, bf16, fp16, or auto for the faster"
        ):
            refused()


@pytest.mark.parametrize("factor, taken", [(0.5, "bf16"), (70.0, "fp32")])
def test_trainings_write_down_what_auto_became(cpu_with, tmp_path, monkeypatch, factor, taken):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path))
    cpu_with(factor)
    context = fit_coop(
        tiny_clip("vit_a", device="cpu"),
        squares(),
        CoOpSettings(epochs=1, length=2, views=1, precision="auto"),
        workers=1,
        progress=False,
    )
    branch, _ = clipn_job.learn(dtype=torch.float32, stop_after=1, precision="auto")
    assert (
        context.settings["precision"],
        context.backbone.precision,
        branch.settings["precision"],
    ) == (taken, "fp32", taken)
