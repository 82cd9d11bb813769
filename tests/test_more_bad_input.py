"""What a user can hand k-NN, Mahalanobis, ViM, ReAct and NegLabel wrongly: each is refused in
words, before long work."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oodnb.backbones import load_backbone
from oodnb.features import Features
from oodnb.methods.knn import fit_knn
from oodnb.methods.mahalanobis import fit_mahalanobis
from oodnb.methods.neglabel import NegLabelSettings, distant_words, neglabel, neglabel_log_odds
from oodnb.methods.react import fit_react
from oodnb.methods.vim import fit_vim

NAMES = ["cat", "dog", "bird"]
WORDS = ["sky", "sea", "cup", "oak", "fog"]


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


@pytest.fixture(scope="module")
def known(tiny):
    chance = torch.Generator().manual_seed(0)
    return Features(
        torch.randn(240, tiny.embed_dim, generator=chance),
        np.arange(240) % 3,
        [str(i) for i in range(240)],
        "pets",
        "train",
        tiny.fingerprint,
        class_names=NAMES,
    )


def fitted(tiny, known):
    return {
        "knn": lambda train: fit_knn(train, 2),
        "mahalanobis": lambda train: fit_mahalanobis(train, ridge=0.1),
        "vim": lambda train: fit_vim(tiny, NAMES, train),
        "react": lambda train: fit_react(tiny, NAMES, train),
        "neglabel": lambda train: neglabel(tiny, NAMES, WORDS, cache=False, progress=False),
    }


ALL = ["knn", "mahalanobis", "vim", "react", "neglabel"]


def with_row(known, value):
    rows = known.image_features.clone()
    rows[7] = value
    return replace(known, image_features=rows)


# what is scored


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_rows_that_have_no_direction_are_not_scored(tiny, known, method, value):
    with pytest.raises(ValueError, match="1 image_features of 'pets' are .* in row 7"):
        fitted(tiny, known)[method](known).score(with_row(known, value))


@pytest.mark.parametrize("method", ALL)
def test_features_of_another_width(tiny, known, method):
    narrow = replace(known, image_features=known.image_features[:, :4])
    with pytest.raises(ValueError, match="is needed"):
        fitted(tiny, known)[method](known).score(narrow)


@pytest.mark.parametrize("method", ALL)
def test_features_of_another_backbone(tiny, known, method):
    with pytest.raises(ValueError, match="come from another"):
        fitted(tiny, known)[method](known).score(replace(known, backbone="another"))


@pytest.mark.parametrize("method", ALL)
def test_half_precision(tiny, known, method):
    half = replace(known, image_features=known.image_features.half())
    with pytest.raises(ValueError, match="float32 or better"):
        fitted(tiny, known)[method](known).score(half)


@pytest.mark.parametrize("method", ALL)
def test_one_picture_scores_as_it_does_among_others(tiny, known, method):
    detector = fitted(tiny, known)[method](known)
    alone = detector.score(known.subset([5]))
    assert alone.dtype == torch.float64 and alone.shape == (1,)
    assert float(alone[0]) == pytest.approx(float(detector.score(known)[5]), abs=1e-4)


# what is learned from


@pytest.mark.parametrize("method", ["knn", "mahalanobis", "vim", "react"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_not_learned_from(tiny, known, method, value):
    with pytest.raises(ValueError, match="NaN or infinite.* row 7"):
        fitted(tiny, known)[method](with_row(known, value))


@pytest.mark.parametrize("method", ["vim", "react"])
def test_pictures_of_another_backbone(tiny, known, method):
    with pytest.raises(ValueError, match="come from another"):
        fitted(tiny, known)[method](replace(known, backbone="another"))


@pytest.mark.parametrize("k", [0, -1, 241, 1.5, 2.0, True, None, "3", float("nan")])
def test_knn_of_no_neighbour(known, k):
    with pytest.raises(ValueError, match="240 pictures of 'pets' are kept; give a whole number"):
        fit_knn(known, k)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_knn_of_an_impossible_share(known, share):
    with pytest.raises(ValueError, match="share is .*above 0 and at most 1"):
        fit_knn(known, share=share)


def test_knn_of_more_neighbours_than_the_share_leaves(known):
    with pytest.raises(ValueError, match="but 24 pictures of 'pets' are kept"):
        fit_knn(known, 25, share=0.1)


def test_knn_of_nothing(known):
    with pytest.raises(ValueError, match="but 0 pictures of 'pets' are kept"):
        fit_knn(known.subset(slice(0, 0)), 1)


@pytest.mark.parametrize("variant", ["Lee", "unit", None, True])
def test_mahalanobis_of_an_unknown_variant(known, variant):
    with pytest.raises(ValueError, match="give 'lee' .* or 'mcm'"):
        fit_mahalanobis(known, variant)


@pytest.mark.parametrize("ridge", [-1e-9, float("nan"), float("inf")])
def test_mahalanobis_with_an_impossible_ridge(known, ridge):
    with pytest.raises(ValueError, match="finite, 0 or more"):
        fit_mahalanobis(known, ridge=ridge)


def test_mahalanobis_without_labels(known):
    with pytest.raises(ValueError, match="have no labels.*fit_knn needs none"):
        fit_mahalanobis(replace(known, labels=np.full(240, -1)))


def test_mahalanobis_with_some_pictures_without_a_class(known):
    labels = known.labels.copy()
    labels[3] = -1
    with pytest.raises(ValueError, match="first is -1 in row 3"):
        fit_mahalanobis(replace(known, labels=labels))


def test_mahalanobis_of_a_class_without_pictures(known):
    with pytest.raises(ValueError, match="1 of 4 classes have no row"):
        fit_mahalanobis(replace(known, class_names=[*NAMES, "fish"]))


@pytest.mark.parametrize("variant", ["lee", "mcm"])
def test_mahalanobis_of_fewer_pictures_than_dimensions(known, variant):
    few = known.subset(slice(0, 12))
    with pytest.raises(ValueError, match="has no inverse.*ridge="):
        fit_mahalanobis(few, variant)
    assert fit_mahalanobis(few, variant, ridge=0.1).score(known).isfinite().all()


@pytest.mark.parametrize("dimensions", [-1, 10_000, 1.5, True, "3"])
def test_vim_of_impossible_dimensions(tiny, known, dimensions):
    with pytest.raises(ValueError, match="dimensions is .* allow 0 to"):
        fit_vim(tiny, NAMES, known, dimensions)


def test_vim_without_a_residual(tiny, known):
    with pytest.raises(ValueError, match="leave no residual; give more pictures"):
        fit_vim(tiny, NAMES, known.subset(slice(0, 2)), tiny.embed_dim // 2)


@pytest.mark.parametrize("percentile", [0, -5, 101, float("nan")])
def test_react_with_an_impossible_cut(tiny, known, percentile):
    with pytest.raises(ValueError, match="give a number above 0, up to 100"):
        fit_react(tiny, NAMES, known, percentile)


@pytest.mark.parametrize("fit", [fit_vim, fit_react])
@pytest.mark.parametrize("names", ["cat", [], ["cat", ""], ["cat", 3]])
def test_class_names_that_are_none(tiny, known, fit, names):
    with pytest.raises(ValueError, match="class_names|[Cc]lass name"):
        fit(tiny, names, known)


# NegLabel

QUIET = dict(cache=False, progress=False)


@pytest.mark.parametrize("names", ["cat", [], ["cat", " "], [3]])
def test_neglabel_of_no_classes(tiny, names):
    with pytest.raises(ValueError, match="class_names|[Cc]lass name"):
        neglabel(tiny, names, WORDS, **QUIET)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "holds no word"),
        (["", " "], "holds no word"),
        (["Cat", "dog"], "names of classes"),
        ("nowhere.txt", "There is no word list"),
        ("sky", "There is no word source"),
        (["sky", 3], "Word number 1 is a int"),
    ],
)
@pytest.mark.parametrize("place", ["words", "adjectives"])
def test_neglabel_of_no_words(tiny, words, said, place):
    given = {"words": WORDS} | {place: words}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        neglabel(tiny, NAMES, **given, **QUIET)


def test_neglabel_of_adjectives_that_are_nouns(tiny):
    with pytest.raises(ValueError, match="All 2 adjectives .* stand among the 5 nouns"):
        neglabel(tiny, NAMES, WORDS, adjectives=["sky", "sea"], **QUIET)


@pytest.mark.parametrize(
    "field, value",
    [
        ("keep", 0),
        ("keep", -0.1),
        ("keep", float("nan")),
        ("quantile", -0.1),
        ("quantile", 1.1),
        ("quantile", float("nan")),
        ("groups", 0),
        ("groups", 2.5),
        ("groups", True),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("temperature", "1"),
    ],
)
def test_neglabel_settings_that_are_impossible(field, value):
    with pytest.raises(ValueError, match=f"{field} is "):
        NegLabelSettings(**{field: value})


@pytest.mark.parametrize("keep", [6, 2.5])
def test_neglabel_that_keeps_more_than_there_is(tiny, keep):
    with pytest.raises(ValueError, match="from 1 to 5"):
        neglabel(tiny, NAMES, WORDS, NegLabelSettings(keep=keep), **QUIET)


@pytest.mark.parametrize("settings", [{"keep": 0.5}, 0.5, None])
def test_neglabel_with_settings_that_are_none(tiny, settings):
    with pytest.raises(TypeError, match="give NegLabelSettings"):
        neglabel(tiny, NAMES, WORDS, settings, **QUIET)


def test_neglabel_with_a_sentence_without_a_place_for_the_word(tiny):
    with pytest.raises(ValueError, match="'nice', has no {}"):
        neglabel(tiny, NAMES, WORDS, NegLabelSettings(template="nice"), **QUIET)


def test_neglabel_of_fewer_words_than_groups_has_a_group_for_each(tiny):
    detector = neglabel(tiny, NAMES, WORDS, NegLabelSettings(keep=3), **QUIET)
    assert (detector.protocol.groups, len(detector.words)) == (3, 3)


@pytest.mark.parametrize("groups", [0, 7, -1])
def test_log_odds_of_more_groups_than_words(groups):
    with pytest.raises(ValueError, match="with 6 words give 1 to 6"):
        neglabel_log_odds(torch.rand(2, 3), torch.rand(2, 6), groups)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_words_that_have_no_direction(value):
    rows = torch.ones(4, 3)
    rows[2] = value
    with pytest.raises(ValueError, match="have no direction"):
        distant_words(rows, torch.eye(3))
