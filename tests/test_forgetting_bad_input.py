"""Everything that can be wrong when forgetting is measured: each ends in an error that names it, or
in NaN instead of a wrong number."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from oodnb.forget.attacks import (
    ProbeSettings,
    linear_probe,
    recall_by_text,
    relearn,
    retrieval,
)
from oodnb.backbones import load_backbone
from oodnb.datasets import ImageSet
from oodnb.features import Features
from oodnb.forget.evaluation import (
    Recognition,
    class_accuracy,
    class_changes,
    class_positions,
    forget_metrics,
    forgetting_table,
    nearest_class,
    recognise,
    summary_score,
)
from oodnb.forget.patch import ProjectionPatch

NAMES = ("cat", "dog", "sparrow", "oak")


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


def seen(names=NAMES, labels=(0, 0, 1, 1, 2, 2, 3, 3), projection=None, name="pets"):
    """Pictures that lie on the texts of their classes."""
    K, labels = len(names), np.array(labels)
    features = torch.eye(K)[labels] if len(labels) else torch.zeros(0, K)
    return Recognition(
        name,
        tuple(names),
        features,
        labels,
        torch.eye(K)[None],
        torch.eye(K) if projection is None else projection,
    )


def without(k, K=4):
    """Turns the text of class k away from its pictures, half towards the next class."""
    eye = torch.eye(K)
    return ProjectionPatch(eye[[k]], (eye[(k + 1) % K] - 2 * eye[k])[:, None], 1.0, (NAMES[k],))


def pictures(labels, names=NAMES):
    draw = lambda i: Image.fromarray(
        np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    )
    return ImageSet(
        "squares",
        "test",
        [f"{i}.png" for i in range(len(labels))],
        np.array(labels),
        list(names),
        draw,
        "squares",
    )


# counting


def test_a_class_without_pictures_and_predictions_does_not_shift_the_others():
    found = class_accuracy(np.array([0, 2, 2, 3]), np.array([0, 2, 3, 3]), 4)
    assert np.isnan(found[1]) and found[[0, 2, 3]].tolist() == [1, 1, 0.5]


def test_a_forgotten_class_without_pictures_is_nan():
    found = forget_metrics([1, np.nan, 0.5], [4, 0, 2], [1])
    assert (
        np.isnan(found["forget"]) and np.isnan(found["forget_by_image"]) and found["other"] == 5 / 6
    )
    table = forgetting_table(None, [seen(labels=(0, 0, 2, 3))], [("pets", "dog")], [None])
    assert (
        np.isnan(table["forget"][0])
        and np.isnan(table["forget_high"][0])
        and np.isnan(table["score"][0])
        and table["other"][0] == 100
    )


def test_a_data_set_with_one_class():
    table = forgetting_table(None, [seen(("cat",), (0, 0, 0))], [("pets", "cat")], [None])
    assert table["forget"][0] == 100 and np.isnan(table["other"][0]) and table["score"][0] == 0.5


def test_every_class_forgotten():
    assert np.isnan(forget_metrics([1, 0.5], [2, 2], [0, 1])["other"])


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 4], "one of 4 classes; they run from 0 to 4"),
        ([-1, 0], "without a label"),
        ([0.0, 1.0], "whole numbers"),
        ([0, 1, 2], "one entry per picture"),
    ],
)
def test_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        class_accuracy(np.array([0, 1]), np.array(labels), 4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_no_numbers(value):
    with pytest.raises(
        ValueError, match="1 rows of sims hold NaN or infinite values, the first is row 1"
    ):
        nearest_class([[1, 2], [value, 0]])
    with pytest.raises(ValueError):
        _ = seen(projection=torch.full((4, 4), value)).predictions


@pytest.mark.parametrize("shape", [(3,), (3, 0), (1, 2, 3)])
def test_shape_of_sims(shape):
    with pytest.raises(ValueError, match="one column per class"):
        nearest_class(np.zeros(shape))


def test_ties_go_to_the_first():
    assert nearest_class(np.ones((2, 5))).tolist() == [0, 0]


@pytest.mark.parametrize("at", [[], [0, 0], [3], [-1]])
def test_positions_of_forgotten_classes(at):
    with pytest.raises(ValueError, match="each once"):
        forget_metrics([1, 1, 1], [1, 1, 1], at)


# names


@pytest.mark.parametrize(
    "names, message",
    [
        ("catt", "Did you mean 'cat'"),
        (["cat", "cat"], "named 2 times"),
        ([], "at least one"),
        (["Cat"], "no class 'Cat'"),
        (["cat", "cat|dog"], r"no class 'cat\|dog'"),
    ],
)
def test_forget_names(names, message):
    with pytest.raises(ValueError, match=message):
        class_positions(names, NAMES)


def test_a_name_that_two_classes_share():
    with pytest.raises(ValueError, match="2 classes are called 'lotus'"):
        class_positions("lotus", ["lotus", "rose", "lotus"])


def test_a_name_with_the_separator_of_the_released_tables():
    names = ("cat|dog", "cat", "dog")
    table = forgetting_table(
        None,
        [seen(names, (0, 0, 1, 2))],
        [("pets", ["cat|dog"]), ("pets", ["cat", "dog"])],
        [None, None],
    )
    assert table["classes"].tolist() == [1, 2] and table["forget"].tolist() == [100, 100]


# tasks


def test_tasks_and_changes():
    sets = [seen()]
    with pytest.raises(ValueError, match="2 tasks but 1 changes"):
        forgetting_table(None, sets, [("pets", "cat"), ("pets", "dog")], [None])
    with pytest.raises(ValueError, match="A task is about 'pests', but the data sets are pets"):
        forgetting_table(None, sets, [("pests", "cat")], [None])
    with pytest.raises(ValueError, match="no class 'cow'"):
        forgetting_table(None, sets, [("pets", "cow")], [None])


def test_a_changed_image_tower_needs_the_pictures(tiny):
    with pytest.raises(ValueError, match="give image sets instead of Recognitions"):
        forgetting_table(None, [seen()], [("pets", "cat")], [tiny])


def test_a_patch_in_the_table():
    table = forgetting_table(
        None, {"pets": seen(), "more": seen(name="more")}, [("pets", "cat")], [without(0)]
    )
    assert (
        table["forget"][0] == 0
        and table["other"][0] == 100
        and table["more"][0] == 75
        and np.isnan(table["pets"][0])
    )
    assert table["score"][0] == pytest.approx(0.25 / 3)


def test_pictures_without_labels(tiny):
    with pytest.raises(ValueError, match="no picture with a label"):
        recognise(tiny, pictures([-1, -1]), cache=False, progress=False)
    assert len(recognise(tiny, pictures([-1, 0, 3]), cache=False, progress=False).labels) == 2


def test_a_double_precision_text_side(tiny):
    half = recognise(tiny, pictures([0, 1, 2, 3]), cache=False, progress=False)
    double = Recognition(
        half.name,
        half.class_names,
        half.image_features,
        half.labels,
        half.hidden.double(),
        half.projection.double(),
    )
    assert (double.predictions == half.predictions).all()


def test_a_patch_of_another_model():
    r = replace(seen(), fingerprint="here")
    with pytest.raises(
        ValueError, match="made for the backbone there, but 'pets' was encoded by here"
    ):
        r.patched(replace(without(0), fingerprint="there"))
    assert (
        r.patched(replace(without(0), fingerprint="here")).predictions
        == seen().patched(without(0)).predictions
    ).all()


# scores, changes, attacks


def test_score_where_nothing_was_recognised_before():
    assert np.isposinf(summary_score(0.1, 0.0, 0.5, 0.5, [0.5], [0.5])) and np.isnan(
        summary_score(0.0, 0.0, 0.5, 0.5, [0.5], [0.5])
    )
    assert summary_score(0.0, 0.5, 0.2, 0.0, [0.3, np.nan], [0.0, np.nan]) == 0


def test_changes_of_a_class_without_pictures():
    table = class_changes(
        seen(labels=(0, 0, 2)), seen(labels=(0, 0, 2)).patched(without(0)), "cat"
    ).set_index("class")
    assert (
        np.isnan(table["change"]["dog"])
        and table["change"]["cat"] == -100
        and table["takes"].sum() == 2
    )


def test_other_words():
    r = seen(labels=(0, 0, 2))
    assert recall_by_text(r, "cat", torch.eye(4)[:2]).tolist() == [1, 0]
    assert np.isnan(recall_by_text(r, "dog", torch.eye(4)[:1])).all()
    assert recall_by_text(seen(("cat",), (0, 0)), "cat", torch.ones(1, 1)).tolist() == [1]


def test_retrieval():
    eye = torch.eye(3)
    with pytest.raises(ValueError, match=r"relevant has shape \[3\]; \[1, 3\] is needed"):
        retrieval(eye[:1], eye, [True, False, False])
    found = retrieval(eye, eye, [[True, False, False], [False] * 3, [True] * 3])
    assert found["average_precision"].tolist()[::2] == [1, 1] and np.isnan(found.loc[1]).all()
    assert np.isnan(retrieval(eye[:1], eye, [[True, False, False]], skip=[0])["first"][0])
    with pytest.raises(ValueError, match="zero, NaN or infinite"):
        retrieval(torch.zeros(1, 3), eye, np.ones((1, 3), bool))


@pytest.mark.parametrize(
    "features, labels, options, message",
    [
        (torch.eye(2), [0], {}, "2 features with 1 labels"),
        (torch.zeros(0, 2), [], {}, "at least one picture"),
        (torch.eye(2), [0, 2], {}, "between 0 and 1"),
        (torch.eye(2), [0, 1], {"decay": 0.0}, "above 0"),
        (torch.full((2, 2), torch.nan), [0, 1], {}, "NaN"),
    ],
)
def test_linear_probe(features, labels, options, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(features, labels, 2, settings=ProbeSettings(**options))


def test_learning_again_from_pictures_of_one_class():
    shots = Features(torch.eye(4)[[0, 0]], np.array([0, 0]), ["a", "b"], "pets", "train", "")
    curve = relearn(
        {"patched": seen().patched(without(0)), "nothing": None},
        shots,
        "cat",
        shots=(0, 1),
        seeds=(1,),
    )
    assert (
        set(curve["start"]) == {"patched", "nothing"}
        and len(curve) == 3
        and np.isfinite(curve["other"]).all()
    )
