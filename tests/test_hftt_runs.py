"""HFTT's batch of runs: each is what it would be alone, stopped or not, and a misspelt option costs
nothing."""

import pytest
import torch

from oodnb.backbones import load_backbone
from oodnb.methods import hftt
from oodnb.pipeline.words import load_words

SMALL = dict(templates=["{}", "a {}"], cache=False, progress=False, batch_size=16)
CHOICES = dict(seed=(1, 2), outliers=(2, 5), focal=(1.0, 0.0, 2.0), crossed=False)


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


@pytest.fixture(scope="module")
def words():
    return load_words().words[::400]


@pytest.fixture(scope="module")
def together(tiny, words):
    return hftt.fit_hftt_runs(tiny, ["dog", "oak tree"], words, **CHOICES, **SMALL)


def test_one_choice_at_a_time(together):
    assert [(len(d.outliers), d.trained["focal"], d.trained["seed"]) for d in together] == [
        (n, g, s) for n, g in ((2, 1.0), (2, 0.0), (2, 2.0), (5, 1.0)) for s in (1, 2)
    ]


@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_run_of_a_batch_is_the_run_alone(tiny, words, together, number):
    run = together[number]
    alone = hftt.fit_hftt(
        tiny,
        ["dog", "oak tree"],
        words,
        run.trained["seed"],
        outliers=len(run.outliers),
        focal=run.trained["focal"],
        **SMALL,
    )
    torch.testing.assert_close(alone.outliers, run.outliers, rtol=1e-4, atol=1e-5)


def test_stopped_and_taken_up(tiny, words, tmp_path):
    fit = lambda **more: hftt.fit_hftt_runs(
        tiny, ["dog", "oak tree"], words, **CHOICES, **SMALL, epochs=2, **more
    )
    assert len(fit(folder=tmp_path, stop_after=1)[0].after_epoch) == 1
    assert all(
        torch.equal(a.outliers, b.outliers)
        for a, b in zip(fit(folder=tmp_path), fit(), strict=True)
    )
    with pytest.raises(ValueError, match="belongs to another training"):
        fit(folder=tmp_path, lr=0.5)


class Deaf:
    """A backbone that must not be asked anything."""

    name, logit_scale, embed_dim, fingerprint, device = "deaf", 100.0, 8, "deaf", "cpu"

    def encode_texts(self, texts, **options):
        raise AssertionError("something was encoded")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"epoch": 2}, TypeError, "epoch"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"lr": float("nan")}, ValueError, "lr is nan"),
        ({"batch_size": 1.5}, ValueError, "batch_size is 1.5"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"focal": [1.0, float("inf")]}, ValueError, "focal is"),
        ({"outliers": [10, 0]}, ValueError, "outliers is 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:temperature is")
def test_wrong_options_are_found_before_anything_is_encoded(wrong, error, message):
    with pytest.raises(error, match=message):
        hftt.fit_hftt_runs(Deaf(), ["dog"], ["word"], **wrong)


def test_the_trainer_is_at_hand_where_the_method_is():
    assert {"HFTTSettings", "TrainedOutliers", "task_side", "train_outliers"} <= set(hftt.__all__)
