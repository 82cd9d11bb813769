"""HFTT's batch of runs: each is what it would be alone, stopped or not, and a misspelt option costs
nothing."""

from dataclasses import replace

import pytest
import torch

from oodnb.backbones import load_backbone
from oodnb.methods import hftt
from oodnb.methods.hftt import HFTTSettings, fit_hftt, fit_hftt_runs, variations
from oodnb.pipeline.words import load_words

SMALL = HFTTSettings(templates=["{}", "a {}"], batch_size=16)
SEVERAL = variations(SMALL, crossed=False, outliers=[2, 5], focal=[1.0, 0.0, 2.0])
QUIET = dict(cache=False, progress=False)
TASK = ["dog", "oak tree"]


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


@pytest.fixture(scope="module")
def words():
    return load_words().words[::400]


@pytest.fixture(scope="module")
def together(tiny, words):
    return fit_hftt_runs(tiny, TASK, SEVERAL, words=words, seeds=(1, 2), **QUIET)


def test_one_choice_at_a_time(together):
    assert [(len(d.outliers), d.trained["focal"], d.trained["seed"]) for d in together] == [
        (n, g, s) for n, g in ((2, 1.0), (2, 0.0), (2, 2.0), (5, 1.0)) for s in (1, 2)
    ]


@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_run_of_a_batch_is_the_run_alone(tiny, words, together, number):
    run = together[number]
    own = replace(SMALL, outliers=len(run.outliers), focal=run.trained["focal"])
    alone = fit_hftt(tiny, TASK, own, words=words, seed=run.trained["seed"], **QUIET)
    torch.testing.assert_close(alone.outliers, run.outliers, rtol=1e-4, atol=1e-5)


def test_stopped_and_taken_up(tiny, words, tmp_path):
    twice = [replace(one, epochs=2) for one in SEVERAL]
    fit = lambda settings=twice, **more: fit_hftt_runs(
        tiny, TASK, settings, words=words, seeds=(1, 2), **QUIET, **more
    )
    assert len(fit(folder=tmp_path, stop_after=1)[0].after_epoch) == 1
    assert all(
        torch.equal(a.outliers, b.outliers)
        for a, b in zip(fit(folder=tmp_path), fit(), strict=True)
    )
    with pytest.raises(ValueError, match="belongs to another training"):
        fit([replace(one, lr=0.5) for one in twice], folder=tmp_path)


def test_words_have_a_new_order_in_every_epoch(tiny, words):
    seen = []
    fit_hftt(
        tiny,
        TASK,
        replace(SMALL, epochs=2, outliers=2),
        words=words,
        watch=lambda row: seen.append((row["epoch"], row["loss"])),
        **QUIET,
    )
    first, second = ([loss for epoch, loss in seen if epoch == e] for e in (0, 1))
    again = fit_hftt(tiny, TASK, replace(SMALL, outliers=2), words=words, **QUIET)
    assert len(first) == len(second) > 3
    assert again.history[0]["losses"] == pytest.approx(sum(first) / len(first))


def test_what_a_detector_says_of_itself(tiny, words):
    asked = HFTTSettings(
        outliers=3,
        focal=0.5,
        temperature=0.0101,
        templates=("{}",),
        word_template="photo",
        deduplicate=True,
        order_seed=2,
        batch_size=20,
        epochs=2,
        lr=0.9,
        lr_min=0.1,
        momentum=0.8,
        weight_decay=1e-4,
        max_steps=3,
    )
    told = fit_hftt(tiny, ["dog"], asked, words=["dog", *words], **QUIET).settings
    assert told["templates"] == ["{}"] and told["word_count"] == len(words)
    assert all(told[key] == value for key, value in vars(asked).items() if key != "templates")


class Deaf:
    """A backbone that must not be asked anything."""

    name, logit_scale, embed_dim, fingerprint, device = "deaf", 100.0, 8, "deaf", "cpu"

    def encode_texts(self, texts, **options):
        raise AssertionError("something was encoded")


@pytest.mark.parametrize(
    "settings, more, error, message",
    [
        (SMALL, {"epochs": 2}, TypeError, "epochs"),
        ({"epochs": 2}, {}, TypeError, r"give HFTTSettings\(\*\*settings\)"),
        ([], {}, ValueError, "settings is empty"),
        ([SMALL, SMALL], {}, ValueError, "Two runs are called 'hftt_seed1'"),
        (variations(SMALL, lr=[1.0, 0.5]), {}, ValueError, "lr is 1.0 in one of the settings"),
        (variations(SMALL, order_seed=[0, 1]), {}, ValueError, "order_seed is 0 in one"),
        (SMALL, {"seeds": 1}, ValueError, "seeds is 1; give a list"),
        (SMALL, {"seeds": []}, ValueError, "seeds is"),
        (replace(SMALL, word_template="openai7"), {}, ValueError, "has 7 templates"),
    ],
)
def test_wrong_options_are_found_before_anything_is_encoded(settings, more, error, message):
    with pytest.raises(error, match=message):
        fit_hftt_runs(Deaf(), ["dog"], settings, words=["word"], **more)


def test_the_trainer_is_at_hand_where_the_method_is():
    assert {"HFTTSettings", "TrainedOutliers", "task_side", "train_outliers"} <= set(hftt.__all__)
