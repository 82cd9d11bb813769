"""Everything that can be wrong with the inputs of Lip: each ends in an error that names it, or is
handled and told."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

from oodnb.backbones import load_backbone
from oodnb.forget.synthetic_pictures import (
    SynthesisSettings,
    SyntheticPictures,
    ascent_step,
    synthesize_pictures,
)
from oodnb.methods.lip import (
    LipSettings,
    fit_lip,
    lip_loss,
    noisy_copies,
    steepest,
    train_lip,
)
from oodnb.towers import tiny_model

NAMES = ["euphonium", "minaret", "platypus"]
SHORT = SynthesisSettings(count=2, threshold=0.4, lowest=0.4, max_steps=20)


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


@pytest.fixture(scope="module")
def dreams(tiny):
    return synthesize_pictures(tiny, "platypus", NAMES, SHORT, progress=False)


@pytest.mark.parametrize(
    "name, names, message",
    [
        ("platipus", NAMES, "'platipus' is none of the 3 classes. Did you mean"),
        ("platypus", ["platypus"], "is the only class"),
        ("platypus", [*NAMES, "platypus"], "2 classes are called 'platypus'"),
        ("platypus", [*NAMES, "platypus_"], "2 classes are called 'platypus'"),
        ("platypus", [], "list of class names is empty"),
        ("platypus", ["platypus", " "], "is blank"),
        (" ", NAMES, "is blank"),
        (None, NAMES, "is a NoneType"),
        ("platypus", "platypus", "is the single string"),
    ],
)
@pytest.mark.parametrize("call", [synthesize_pictures, fit_lip])
def test_which_class(tiny, call, name, names, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")
        call(tiny, name, names)


def test_names_that_differ_by_an_underscore_are_one(tiny):
    assert (
        synthesize_pictures(
            tiny, "platypus_", ["snow leopard", "platypus"], SHORT, progress=False
        ).class_name
        == "platypus"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(count=0), "count is 0"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(max_attempts=0), "max_attempts is 0"),
        (dict(threshold=1.0), "threshold is 1.0"),
        (dict(threshold=0.3, lowest=0.5), "lowest 0.5"),
        (dict(drop=-0.1), "drop is -0.1"),
        (dict(threshold=math.nan), "threshold is nan"),
        (dict(rate=0.0), "rate is 0.0"),
        (dict(roll=-1), "roll is -1"),
        (dict(blur_every=2.5), "blur_every is 2.5"),
    ],
)
def test_how_pictures_are_made(options, message):
    with pytest.raises(ValueError, match=message):
        SynthesisSettings(**options)


def test_settings_of_another_kind(tiny):
    with pytest.raises(ValueError, match="batch_size is 0"):
        synthesize_pictures(tiny, "platypus", NAMES, batch_size=0)
    with pytest.raises(TypeError, match=r"give SynthesisSettings\(\*\*settings\)"):
        synthesize_pictures(tiny, "platypus", NAMES, dict(count=2))
    with pytest.raises(TypeError, match=r"give LipSettings\(draws=25\)"):
        fit_lip(tiny, "platypus", NAMES, SHORT)
    with pytest.raises(TypeError, match="count"):
        fit_lip(tiny, "platypus", NAMES, count=2)


def test_pictures_that_are_never_recognised_are_told(tiny):
    with pytest.raises(
        RuntimeError, match="No picture of 'platypus' was recognised in 2 attempts of 1 steps"
    ):
        synthesize_pictures(
            tiny,
            "platypus",
            NAMES,
            SynthesisSettings(
                count=3, threshold=0.9999, lowest=0.9999, max_steps=1, max_attempts=2
            ),
            progress=False,
        )
    many = SynthesisSettings(
        count=6, drop=0.0, max_attempts=1, max_steps=2, threshold=0.01, lowest=0.01
    )
    sure = sorted(synthesize_pictures(tiny, "platypus", NAMES, many, progress=False).probabilities)
    once = replace(many, threshold=sure[-2], lowest=sure[-2], max_steps=1)
    with pytest.warns(
        UserWarning, match="of 6 pictures of 'platypus' were not recognised in 1 attempts"
    ):
        some = synthesize_pictures(tiny, "platypus", NAMES, once, progress=False)
    assert some.given_up == 6 - len(some.pixels) > 0


def test_a_model_whose_features_are_nothing():
    tiny = load_backbone("tiny-vit", device="cpu")
    tiny.model.visual.proj.zero_()
    with pytest.raises(RuntimeError, match="No picture of 'platypus' was recognised"):
        half = replace(SHORT, threshold=0.5, lowest=0.5)
        synthesize_pictures(tiny, "platypus", NAMES, half, progress=False)
    tiny.model.visual.proj.fill_(math.nan)
    with pytest.raises(RuntimeError, match="gradient with respect to the pictures is not finite"):
        synthesize_pictures(tiny, "platypus", NAMES, SHORT, progress=False)


def test_gradients_that_are_no_numbers():
    with pytest.raises(RuntimeError, match="not finite at step 3"):
        ascent_step(torch.zeros(1, 3, 4, 4), [(0, 0)], lambda x: x.flatten(1).sum(1) * math.nan, 3)
    with pytest.raises(ValueError, match="gradient of visual.proj is inf"):
        steepest({"visual.proj": math.inf}, 1, 1)


def test_pictures_of_one_colour():
    flat = torch.full((2, 3, 4, 4), 0.5)
    with pytest.raises(ValueError, match="Copy 0 of picture 0 is at a distance of 0 from it"):
        lip_loss(
            torch.zeros(2, 5),
            torch.zeros(2, 5),
            torch.zeros(1, 2, 5),
            flat,
            noisy_copies(flat, torch.randn(1, 2, 3, 4, 4), 1.0),
        )


def test_pictures_that_are_no_numbers():
    model, tokens = tiny_model("vit_a"), torch.tensor([[49406, 320, 49407]])
    pictures = torch.rand(1, 3, 32, 32)
    pictures[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="Copy 0 of picture 0 is at a distance of nan"):
        train_lip(model, pictures, tokens, lambda: 1.0, lambda epoch: [torch.randn(1, 3, 32, 32)])


def test_weights_that_are_no_numbers():
    model = tiny_model("vit_a")
    model.visual.proj.data[0, 0] = math.inf
    with pytest.raises(
        RuntimeError, match="Lip failed in epoch 0: the loss is (nan|inf) at level 0"
    ):
        train_lip(
            model,
            torch.rand(1, 3, 32, 32),
            torch.tensor([[49406, 320, 49407]]),
            lambda: 1.0,
            lambda epoch: [torch.randn(1, 3, 32, 32)],
        )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(stds=(0.1,)), "1, 7 and 7 levels"),
        (dict(stds=(), image_tensors=(), text_tensors=()), "0, 0 and 0 levels"),
        (dict(stds=(0.0, 1, 1, 1, 1, 1, 1)), "noise must be above 0"),
        (dict(image_tensors=(-1, 1, 1, 1, 1, 1, 1)), "not negative"),
        (dict(draws=0), "draws is 0"),
        (dict(stop=1.0), "stop is 1.0"),
        (dict(betas=(0.9, 1.0)), r"betas are \(0.9, 1.0\)"),
        (dict(lr=math.nan), "lr is nan"),
        (dict(epochs=-1), "epochs is -1"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        LipSettings(**changes)


def test_more_tensors_asked_for_than_there_are(tiny, dreams):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = fit_lip(
            tiny,
            "platypus",
            NAMES,
            LipSettings(image_tensors=(999,) * 7, text_tensors=(999,) * 7, epochs=1, draws=1),
            dreams=dreams,
        )
    assert adapted.about["history"][0]["tensors"] == 56


def test_a_name_that_does_not_fit(tiny):
    with pytest.raises(ValueError, match="longer than the 75 tokens"):
        fit_lip(tiny, "very " * 80 + "platypus", ["very " * 80 + "platypus", "minaret"])


def test_what_is_not_forgotten_is_told(tiny, dreams):
    with pytest.warns(
        UserWarning,
        match=(
            "Lip has not forgotten 'platypus': 100% of its own pictures are still recognised "
            "after 0 epochs"
        ),
    ):
        adapted = fit_lip(tiny, "platypus", NAMES, LipSettings(epochs=0), dreams=dreams)
    assert not adapted.about["reached"] and adapted.fingerprint == tiny.fingerprint


def test_the_given_backbone_stays_as_it_is_in_half_precision_too(dreams):
    half = load_backbone("tiny-vit", device="cpu", precision="bf16")
    before = half.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = fit_lip(
            half, "platypus", NAMES, LipSettings(epochs=2, draws=1, lr=1e-2), dreams=dreams
        )
    assert (half.fingerprint, half.precision, adapted.precision) == (before, "bf16", "bf16")
    assert not any(p.requires_grad for p in [*half.model.parameters(), *adapted.model.parameters()])


def test_dreams_of_another_class_or_size(tiny, dreams):
    with pytest.raises(ValueError, match="dreams are of 'platypus'"):
        fit_lip(tiny, "minaret", NAMES, dreams=dreams)
    small = SyntheticPictures(
        "platypus",
        dreams.pixels[..., :16, :16],
        dreams.shown,
        dreams.probabilities,
        dreams.steps,
        dreams.attempts,
        0,
    )
    with pytest.raises(ValueError, match="encode_images takes a float tensor"):
        fit_lip(tiny, "platypus", NAMES, dreams=small)
