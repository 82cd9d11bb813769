"""Everything that can be wrong with what TOE makes its outlier texts and statistics of: each ends
in an error that names it, or is handled and counted."""

import json

import numpy as np
import pytest
import torch

from oodnb.backbones import load_backbone
from oodnb.measure.class_statistics import class_means, class_statistics
from oodnb.metrics import detection_metrics
from oodnb.toe.outlier_texts import (
    caption_outliers,
    description_outliers,
    farthest_texts,
    labelled_texts,
    likely_tokens,
    load_descriptors,
    load_texts,
    names_a_class,
    paper_names,
    word_outliers,
)
from oodnb.scores import energy, mahalanobis
from oodnb.pipeline.words import encode_once


def rows(count, width=3, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


# class statistics


def test_a_class_without_samples():
    with pytest.raises(ValueError, match="2 of 4 classes have no row and no mean, first class 1"):
        class_statistics(rows(20), torch.tensor([0, 2] * 10), n_classes=4)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1, 2, -1], "first is -1 in row 3"),
        ([0, 1, 2, 3], "between 0 and 2, the first is 3 in row 3"),
        ([0.0, 1.0, 2.0, 0.0], "torch.float32"),
        ([0, 1, 2], "labels \\[3\\]"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        class_statistics(rows(4), torch.tensor(labels), n_classes=3)


@pytest.mark.parametrize("count, width, reach", [(5, 5, 4), (3, 8, 2), (2, 4, 1)])
def test_fewer_rows_than_columns(count, width, reach):
    labels = torch.zeros(count, dtype=torch.long)
    with pytest.raises(
        ValueError, match=f"{count} rows reach {reach} of {width} directions.*ridge="
    ):
        class_statistics(rows(count, width), labels)
    found = class_statistics(rows(count, width), labels, ridge=0.1)
    assert np.isfinite(found.condition) and found.score(rows(4, width)).isfinite().all()


def test_columns_that_are_constant_and_rows_that_are_equal():
    labels = torch.arange(40) % 2
    with pytest.raises(ValueError, match="reach 2 of 3 directions"):
        class_statistics(torch.cat([rows(40, 2), torch.ones(40, 1)], 1), labels)
    with pytest.raises(ValueError, match="all rows are the same"):
        class_statistics(torch.ones(40, 3), labels)
    assert class_statistics(torch.ones(40, 3), labels, ridge=1e-3).condition == 1
    with pytest.raises(ValueError, match="1 rows leave nothing"):
        class_statistics(torch.ones(1, 3), [0], ridge=1)


def test_rows_without_direction_or_number():
    bad = rows(20)
    bad[7] = 0
    with pytest.raises(ValueError, match="first is row \\[7\\]"):
        class_statistics(bad, torch.arange(20) % 2, normalize=True)
    assert class_statistics(bad, torch.arange(20) % 2).condition > 0
    bad[7, 1] = torch.nan
    with pytest.raises(ValueError, match="first is row 7"):
        class_statistics(bad, torch.arange(20) % 2)
    for ridge in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge is"):
            class_statistics(rows(20), torch.arange(20) % 2, ridge=ridge)
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="batch_index is"):
            class_means(rows(20), torch.arange(20) % 2, batch_index=wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_precision_is_computed_in_float64(dtype):
    given, labels = rows(200).to(dtype), torch.arange(200) % 3
    found, exact = class_statistics(given, labels), class_statistics(given.double(), labels)
    assert found.means.dtype == found.precision.dtype == torch.float64
    assert torch.equal(found.precision, exact.precision) and torch.equal(
        found.score(given), exact.score(given.double())
    )


def test_one_class_and_a_half_known_number_of_classes():
    assert class_statistics(rows(20), torch.zeros(20, dtype=torch.long)).means.shape == (1, 3)
    with pytest.raises(ValueError, match="n_classes is 0"):
        class_statistics(rows(20), torch.zeros(20, dtype=torch.long), n_classes=0)


# distances and selection


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 3), (2, 4), (4, 4)),
        ((4, 3), (2, 3), (3, 4)),
        ((3,), (2, 3), (3, 3)),
        ((4, 3), (0, 3), (3, 3)),
    ],
)
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="do not fit"):
        mahalanobis(*(torch.ones(shape) for shape in shapes))


def test_a_precision_that_is_none():
    for precision, message in (
        (torch.diag(torch.tensor([1.0, -1.0])), "no inverse of a covariance"),
        (torch.zeros(2, 2), None),
        (torch.full((2, 2), torch.nan), "NaN"),
    ):
        if message is None:
            assert mahalanobis(rows(3, 2), rows(2, 2), precision).tolist() == [0, 0, 0]
            continue
        with pytest.raises(ValueError, match=message):
            mahalanobis(rows(3, 2), rows(2, 2), precision)


def test_zero_and_infinite_caption_features():
    bad = rows(20)
    bad[4] = 0
    with pytest.raises(ValueError, match="first is row \\[4\\]"):
        farthest_texts(bad, rows(2), torch.eye(3))
    for keep in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="keep is"):
            farthest_texts(rows(20), rows(2), torch.eye(3), keep)
    assert len(farthest_texts(rows(20), rows(2), torch.eye(3), 1)[0]) == 20


@pytest.mark.parametrize("count", [0, 1, 6])
def test_so_few_captions_that_none_is_selected(count):
    statistics = class_statistics(rows(50), torch.arange(50) % 2, normalize=True)
    with pytest.warns(UserWarning, match=f"No caption is left of {count}"):
        found = caption_outliers(
            [f"caption {i}" for i in range(count)], rows(count), statistics, ["hen"]
        )
    assert len(found) == 0 and found.counts["made"] == count


# words


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers(value):
    logits = rows(5, 60)
    logits[3, 2] = value
    with pytest.raises(
        ValueError, match="logits of 1 of 5 pictures are NaN or infinite, the first is row 3"
    ):
        word_outliers(logits, ["w"] * 60, ["hen"])


def test_vocabularies_that_do_not_fit():
    with pytest.raises(ValueError, match="The vocabulary has 54 tokens and no rank 55"):
        word_outliers(rows(2, 54), ["w"] * 54, ["hen"])
    with pytest.raises(
        ValueError, match="The vocabulary has 3 entries, the logits have 60 columns"
    ):
        word_outliers(rows(2, 60), ["a", "b", "c"], ["hen"])
    for skip, top in ((55, 55), (-1, 5), (5, 4)):
        with pytest.raises(ValueError, match="ranks run from skip"):
            likely_tokens(rows(2, 60), skip, top)
    with pytest.raises(ValueError, match="batch_size is 0"):
        likely_tokens(rows(2, 60), batch_size=0)
    with pytest.raises(ValueError, match="logits have shape \\[0, 60\\]"):
        likely_tokens(rows(0, 60))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_logits_of_any_precision_and_size(dtype):
    logits = (rows(3, 60) * 1e4).to(dtype)
    assert [row.tolist() for row in likely_tokens(logits)] == [
        row.tolist() for row in likely_tokens(logits.double())
    ]


# descriptions, captions, names


@pytest.mark.parametrize(
    "found, message",
    [
        (["a tail"], "holds a list"),
        ({"cat": "a tail"}, "descriptors of 'cat' are 'a tail'"),
        ({"cat": ["a tail", 3]}, "give a list of strings"),
    ],
)
def test_descriptors_of_another_form(found, message, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=message):
        load_descriptors(tmp_path / "d.json")


def test_descriptor_files_that_are_none(tmp_path):
    (tmp_path / "d.json").write_text('{"cat": ["a ta')
    with pytest.raises(ValueError, match="d.json is no JSON file"):
        load_descriptors(tmp_path / "d.json")
    with pytest.raises(FileNotFoundError, match="Give 'mini', 'imagenet', or the path"):
        load_descriptors(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="is no JSON file"):
        load_texts(tmp_path / "d.json")


def test_no_descriptions_at_all():
    for descriptors in ({}, {"cat": []}, {"cat": ["", " "]}):
        with pytest.warns(UserWarning, match="No description is left"):
            assert description_outliers(descriptors, ["hen"]).texts == ()


def test_captions_that_are_none():
    with pytest.raises(ValueError, match="Caption number 1 is a NoneType"):
        caption_outliers(["a", None], None, None, ["hen"])
    with pytest.raises(ValueError, match="2 captions for 3 rows of features"):
        caption_outliers(
            ["a", "b"], rows(3), class_statistics(rows(50), torch.arange(50) % 2), ["hen"]
        )
    with pytest.warns(UserWarning, match="No caption is left of 3: 3 blank"):
        assert (
            caption_outliers(
                ["", "\n", " "], rows(3), class_statistics(rows(50), torch.arange(50) % 2), ["hen"]
            ).texts
            == ()
        )


def test_blank_captions_take_no_part_in_the_selection():
    statistics = class_statistics(
        rows(50) + torch.tensor([5.0, 0, 0]), torch.arange(50) % 2, normalize=True
    )
    features = rows(20, seed=1)
    features[::2] = 0  # a blank caption may have no feature worth the name
    captions = ["" if i % 2 == 0 else f"caption {i:02}" for i in range(20)]
    found = caption_outliers(captions, features, statistics, ["hen"], keep=0.5)
    assert len(found) == 5 and found.counts["removed"]["blank"] == 10


def test_class_names_that_are_none():
    for names, message in (
        ("hen", "single string"),
        ([], "empty"),
        (["hen", ""], "blank"),
        (["hen", 3], "number 1 is a int"),
    ):
        with pytest.raises(ValueError, match=message):
            names_a_class(["a hen"], names)
    with pytest.raises(ValueError, match="names is 'all'"):
        names_a_class(["a hen"], ["hen"], "all")
    with pytest.raises(ValueError, match="There are no names of 'ImageNet50'"):
        paper_names("ImageNet50")
    with pytest.raises(ValueError, match="2 class names, synonyms of 1"):
        labelled_texts(["a", "b"], [[]], {"a": [], "b": []})


def test_texts_that_are_too_long_are_cut_with_a_warning():
    texts = description_outliers({"cat": ["a long tail " * 60, "a tail"]}, ["hen"]).texts
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 75 tokens and were cut"):
        found = encode_once(
            load_backbone("tiny-vit", device="cpu"), texts, cache=False, progress=False
        )
    assert found.isfinite().all()


# scores of a trained head


@pytest.mark.parametrize(
    "known, other", [([1.0], [2.0]), ([1.0], [1.0, 1.0]), ([3.0] * 9, [3.0] * 4)]
)
def test_lists_of_one_and_lists_of_equals(known, other):
    row = detection_metrics(
        energy(torch.tensor(known)[:, None]), energy(torch.tensor(other)[:, None])
    )
    assert row["auroc"] == (0.0 if known[0] < other[0] else 0.5) and row["fpr95_id_positive"] == 1
