"""Everything that can be wrong with what TOE is trained on: each ends in an error that names it, or
is handled and counted."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from oodnb.backbones import load_backbone
from oodnb.features import Features
from oodnb.toe.classifier_heads import (
    TextNoise,
    TOESettings,
    make_head,
    noisy_texts,
    train_head,
)
from oodnb.losses import energy_margin_loss, outlier_exposure_loss
from oodnb.methods.toe import (
    TOEDetector,
    fit_toe,
    fit_toe_runs,
    load_toe,
    outlier_rows,
    save_toe,
    variations,
)
from oodnb.metrics import detection_metrics
from oodnb.toe.virtual_outliers import VirtualOutliers, train_virtual

NAMES = ["cat", "dog", "bird"]
SHORT = TOESettings(epochs=2)
QUIET = dict(progress=False, cache=False)


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


def rows(count, width=6, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def known(count=12, classes=3, width=6, values=None, labels=None, backbone=None):
    labels = np.arange(count) % classes if labels is None else np.asarray(labels)
    return Features(
        rows(count, width) if values is None else values,
        labels,
        [str(i) for i in range(count)],
        "pets",
        "train",
        backbone,
    )


def broken(value, row=3):
    values = rows(12)
    values[row] = value
    return values


# outliers


@pytest.mark.parametrize(
    "nothing", [[], (), type("Empty", (), {"texts": (), "level": "caption"})()]
)
def test_no_outlier_is_left(tiny, nothing):
    with pytest.raises(ValueError, match=r"There are 0 outlier texts; .*outliers=None"):
        fit_toe(known(), NAMES, nothing, SHORT, backbone=tiny, **QUIET)
    with pytest.raises(ValueError, match="To train without outliers give None"):
        fit_toe(known(), NAMES, torch.zeros(0, 6), SHORT, **QUIET)
    with pytest.raises(ValueError, match="Without outliers train with the cross-entropy alone"):
        outlier_exposure_loss(torch.zeros(2, 3), [0, 1], torch.zeros(0, 3))


@pytest.mark.parametrize(
    "texts, where", [(["a song", ""], 1), ([" \n", "a"], 0), (["a", "b", None], 2), (["a", 3], 1)]
)
def test_a_text_without_content(tiny, texts, where):
    with pytest.raises(
        ValueError, match=rf"Outlier text {where} is .*leave out captions that failed"
    ):
        outlier_rows(texts, tiny, cache=False)


def test_a_single_text_and_texts_without_a_backbone():
    with pytest.raises(ValueError, match="is the single text 'a song'"):
        outlier_rows("a song")
    with pytest.raises(ValueError, match="need the backbone that encodes them"):
        outlier_rows(["a song"])


def test_repeated_texts_count_as_often_as_given_and_are_told(tiny):
    found, _, about = outlier_rows(
        ["a song", "a bucket", "a song"], tiny, cache=False, progress=False
    )
    assert torch.equal(found[0], found[2]) and (about["outlier_count"], about["different"]) == (
        3,
        2,
    )


def test_a_text_that_is_too_long_is_cut_with_a_warning(tiny):
    with pytest.warns(UserWarning, match="were cut"):
        outlier_rows(["word " * 200], tiny, cache=False, progress=False)


def test_zero_and_broken_outlier_features():
    with pytest.raises(ValueError, match="1 of 12 outlier features are zero .* first in row 3"):
        fit_toe(known(), NAMES, broken(0.0), SHORT, **QUIET)
    with pytest.raises(
        ValueError, match="outliers hold NaN or infinite values, the first in row 3"
    ):
        fit_toe(known(), NAMES, broken(math.nan), SHORT, **QUIET)
    with pytest.raises(ValueError, match="outliers have width 5, but the pictures 6"):
        fit_toe(known(), NAMES, rows(4, 5), SHORT, **QUIET)
    noisy = noisy_texts(torch.zeros(2, 6), rows(2))
    assert noisy.isfinite().all() and torch.allclose(noisy.norm(dim=1), torch.ones(2))


def test_texts_that_are_all_the_same_cannot_be_standardised():
    with pytest.raises(ValueError, match="numbers of a batch are all the same"):
        fit_toe(known(), NAMES, torch.ones(4, 6), replace(SHORT, standardize=True), **QUIET)
    with pytest.raises(ValueError, match="numbers of a batch are all the same"):
        TextNoise(standardize=True)(rows(2, 1), torch.ones(1, 1), torch.ones(1, 1))


# pictures and classes


def test_broken_pictures():
    for value in (math.nan, math.inf, 0.0):
        with pytest.raises(
            ValueError,
            match=r"1 image_features of 'pets' are zero, NaN or infinite, the first in row 3",
        ):
            fit_toe(known(values=broken(value)), NAMES, None, SHORT, **QUIET)


@pytest.mark.parametrize(
    "labels, told",
    [
        (np.arange(12) % 4, "run from 0 to 3, but there are 3 class names"),
        (np.arange(12) % 3 - 1, "run from -1 to 1"),
    ],
)
def test_labels_that_are_no_class(labels, told):
    with pytest.raises(ValueError, match=told):
        fit_toe(known(labels=labels), NAMES, None, SHORT, **QUIET)
    with pytest.raises(ValueError, match="the head has 3 classes|from -1"):
        train_head(
            rows(12),
            labels,
            None,
            [make_head("linear", 6, 3)],
            lambda epoch: (np.arange(12), None),
            TOESettings(epochs=1),
            progress=False,
        )


def test_a_class_without_pictures():
    lonely = known(labels=np.zeros(12, dtype=int))
    with pytest.warns(
        UserWarning, match="2 of 3 classes have no training picture, the first is 'dog'"
    ):
        head = fit_toe(lonely, NAMES, rows(4), SHORT, **QUIET)
    assert head.score(lonely).isfinite().all()
    with pytest.raises(ValueError, match="2 of 3 classes have no row and no mean"):
        head.scored("mahalanobis", features=lonely)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="2 of 3 classes have no picture to feed their queue"):
            fit_toe(lonely, NAMES, VirtualOutliers(queue_size=2), SHORT, **QUIET)


def test_one_class_and_one_outlier():
    one = known(4, 1)
    for loss in ("uniform", "energy_margin", "energy_logistic"):
        found = fit_toe(one, ["cat"], rows(1), replace(SHORT, loss=loss), **QUIET)
        assert found.score(one).isfinite().all() and found.predict(one).tolist() == [0] * 4
    assert fit_toe(one, ["cat"], rows(1), SHORT, **QUIET).history[-1]["loss"] == 0


def test_few_or_constant_pictures_have_no_covariance():
    few = known(4, 3)
    head = fit_toe(few, NAMES, None, SHORT, **QUIET)
    flat = known(values=torch.ones(12, 6))
    with pytest.raises(ValueError, match="covariance has no inverse: all rows are the same"):
        head.scored("mahalanobis", features=flat)
    assert head.scored("mahalanobis", features=flat, ridge=1e-3).score(flat).isfinite().all()


def test_half_precision_is_refused_with_the_way_out():
    for call in (
        lambda: fit_toe(known(), NAMES, rows(4).half(), SHORT, **QUIET),
        lambda: noisy_texts(rows(2).half(), rows(2)),
        lambda: energy_margin_loss(rows(2).half(), [0, 1], rows(2).half()),
    ):
        with pytest.raises(ValueError, match=r"float16; .*\.float\(\)"):
            call()
    with pytest.raises(ValueError, match="image_features are float16"):
        fit_toe(known(values=rows(12).half()), NAMES, None, SHORT, **QUIET)


def test_a_head_does_not_fit_the_data(tiny):
    head = fit_toe(known(), NAMES, None, SHORT, **QUIET)
    with pytest.raises(ValueError, match="text vectors of width 6, but image_features has shape"):
        head.score(known(width=7))
    other = fit_toe(known(backbone="this one"), NAMES, None, SHORT, **QUIET)
    with pytest.raises(ValueError, match="built with the backbone this one"):
        other.score(known(backbone="that one"))
    with pytest.raises(ValueError, match="use one for both"):
        fit_toe(known(backbone="this one"), NAMES, ["a song"], SHORT, backbone=tiny, **QUIET)
    with pytest.raises(ValueError, match="the same classes"):
        outlier_exposure_loss(torch.zeros(2, 3), [0, 1], torch.zeros(2, 4))


def test_names_that_cannot_be_used():
    for names, told in (([], "empty"), (["cat", " ", "bird"], "blank"), ("cat", "single string")):
        with pytest.raises(ValueError, match=told):
            fit_toe(known(), names, None, SHORT, **QUIET)
    with pytest.warns(UserWarning, match="occur more than once"):
        fit_toe(known(), ["cat", "cat", "bird"], None, SHORT, **QUIET)


# training


@pytest.mark.parametrize("images, outliers", [(3, 200), (200, 3), (1, 1), (33, 65)])
def test_either_side_may_be_shorter(images, outliers):
    watched = []
    fit_toe(known(images, 1), ["cat"], rows(outliers), SHORT, watch=watched.append, **QUIET)
    assert len(watched) == 2 * min(math.ceil(images / 32), math.ceil(outliers / 32))
    watched.clear()
    again = replace(SHORT, repeat=True)
    fit_toe(known(images, 1), ["cat"], rows(outliers), again, watch=watched.append, **QUIET)
    assert len(watched) == 2 * math.ceil(images / 32)


@pytest.mark.parametrize(
    "wrong, told",
    [
        (dict(variance=-0.1), "variance is"),
        (dict(variance=math.nan), "variance is"),
        (dict(variance=[0.1]), "variance is"),
        (dict(noise="none"), "noise is 'none'"),
        (dict(offset="thrice"), "offset is 'thrice'"),
        (dict(loss="margin"), "loss is 'margin'"),
        (dict(head="big"), "head is 'big'"),
        (dict(hidden=0), "hidden is 0"),
        (dict(epochs=0), "epochs is 0"),
        (dict(image_batch=0), "image_batch is 0"),
        (dict(outlier_batch=2.5), "outlier_batch is 2.5"),
        (dict(lr=0), "lr is 0"),
        (dict(lr=math.inf), "lr is inf"),
        (dict(lr_low=-1), "lr_low is -1"),
        (dict(weight=-1), "weight is -1"),
        (dict(id_margin=math.nan), "id_margin is nan"),
        (dict(repeat="yes"), "repeat is 'yes'"),
        (dict(score="odin"), "score is 'odin'"),
    ],
)
def test_impossible_settings(wrong, told):
    with pytest.raises(ValueError, match=told):
        TOESettings(**wrong)


@pytest.mark.parametrize(
    "settings, more, error, told",
    [
        (SHORT, dict(epochs=2), TypeError, "epochs"),
        (dict(epochs=2), {}, TypeError, r"give TOESettings\(\*\*settings\)"),
        ([], {}, ValueError, "settings is empty"),
        ([SHORT, SHORT], {}, ValueError, "Two runs are called 'toe_seed1'"),
        (variations(SHORT, weight=[0.5, 1.0]), {}, ValueError, "weight is 0.5 in one"),
        (SHORT, dict(seeds=1), ValueError, "seeds is 1; give a list"),
        (replace(SHORT, head="deep", hidden=1), {}, ValueError, "at least 2"),
    ],
)
def test_trainings_that_cannot_be_one(settings, more, error, told):
    with pytest.raises(error, match=told):
        fit_toe_runs(known(), NAMES, rows(4), settings, **QUIET, **more)


def test_a_score_that_needs_what_is_missing():
    with pytest.raises(ValueError, match="there are no outliers"):
        fit_toe(known(), NAMES, None, TOESettings("energy_margin"), **QUIET)
    with pytest.raises(ValueError, match="class_texts feed the queues"):
        fit_toe(known(), NAMES, rows(4), SHORT, class_texts=(rows(3), [0, 1, 2]), **QUIET)
    for wrong, told in (
        (dict(temperature=0), "temperature is 0"),
        (dict(on="cosines"), "classifier is missing"),
        (dict(on="text"), "on is 'text'"),
    ):
        with pytest.raises(ValueError, match=told):
            TOEDetector("toe", tuple(make_head("linear", 6, 3))).scored("mcm", **wrong)


def test_a_training_that_runs_away_is_stopped():
    with pytest.raises(RuntimeError, match="Training failed in epoch"):
        far = TOESettings(lr=1e30, epochs=30)
        fit_toe(known(values=1e30 * rows(12)), NAMES, rows(4), far, **QUIET)


def test_another_training_is_not_taken_up(tmp_path):
    fit_toe(known(), NAMES, rows(4), SHORT, folder=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="belongs to another training"):
        fit_toe(known(), NAMES, rows(5), SHORT, folder=tmp_path, **QUIET)


def test_a_killed_training_ends_with_the_same_bytes(tmp_path):
    for outliers in (rows(40), VirtualOutliers(queue_size=3, sample_from=10, start_epoch=1)):
        four = TOESettings(epochs=4)
        fit = lambda **more: fit_toe_runs(
            known(), NAMES, outliers, four, seeds=(1, 2), progress=False, **more
        )
        place = tmp_path / type(outliers).__name__
        fit(folder=place, stop_after=2)
        for one, other in zip(fit(folder=place), fit()):
            assert all(
                torch.equal(a, b)
                for left, right in zip(one.head, other.head)
                for a, b in zip(left, right)
            )


@pytest.mark.parametrize(
    "wrong, told",
    [
        (dict(queue_size=0), "queue_size is 0"),
        (dict(select=0), "select is 0"),
        (dict(select=5, sample_from=4), "of the draws 1 to 4"),
        (dict(ridge=-1), "ridge is -1"),
        (dict(weight=-1), "weight is -1"),
        (dict(start_epoch=-1), "start_epoch is -1"),
        (dict(train_energy=None), "train_energy is None"),
    ],
)
def test_impossible_synthesis(wrong, told):
    with pytest.raises(ValueError, match=told):
        VirtualOutliers(**wrong)


def test_a_queue_that_never_fills_is_plain_training():
    line = [torch.ones(1, 3), torch.zeros(1, 2, 1), torch.zeros(1, 2)]
    done = train_virtual(
        rows(12),
        np.arange(12) % 3,
        None,
        [make_head("linear", 6, 3)],
        lambda epoch: (np.arange(12), None),
        None,
        line,
        TOESettings(epochs=2),
        VirtualOutliers(queue_size=1000, start_epoch=0),
        progress=False,
    )
    assert done.outliers is None and done.queues.counts.tolist() == [[8, 8, 8]]
    assert [row["synthesised"] for row in done.history] == [0, 0]


def test_what_a_detector_says_of_itself():
    asked = variations(
        TOESettings(head="mlp", hidden=5, noise="ball", offset="once", epochs=2, lr_low=0.1),
        variance=[0.1, 0.2],
    )
    for found, one in zip(fit_toe_runs(known(), NAMES, rows(4), asked, seeds=[3], **QUIET), asked):
        assert vars(one).items() <= found.settings.items()
        assert (found.settings["seed"], found.settings["outliers"]) == (3, "text features")


# what comes after


@pytest.mark.parametrize(
    "known_scores, other", [([1.0], [0.0]), ([1.0, 1.0], [1.0, 1.0, 1.0]), ([0.5], [0.5])]
)
def test_lists_of_one_and_of_equal_scores(known_scores, other):
    found = detection_metrics(torch.tensor(known_scores), torch.tensor(other))
    assert 0.5 <= found["auroc"] <= 1 and math.isfinite(found["fpr95_id_positive"])


def test_another_file_is_no_detector(tmp_path):
    head = fit_toe(known(), NAMES, rows(4), SHORT, **QUIET)
    save_toe(tmp_path / "toe.safetensors", head)
    assert torch.equal(load_toe(tmp_path / "toe.safetensors").score(known()), head.score(known()))
    (tmp_path / "other").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match="holds no TOE detector"):
        load_toe(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="save_toe writes one"):
        load_toe(tmp_path / "none")
