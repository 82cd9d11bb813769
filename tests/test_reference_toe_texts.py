"""Reference cases of TOE: scores, metrics, class statistics, and the making of outlier texts; and
the same against plain numpy on nastier inputs."""

import json

import numpy as np
import pytest
import torch

from oodnb.measure.class_statistics import class_statistics
from oodnb.metrics import fpr_at_tpr
from oodnb.toe.outlier_texts import (
    RELEASE,
    caption_outliers,
    description_outliers,
    farthest_texts,
    likely_tokens,
    tidy_captions,
    word_outliers,
)
from oodnb.scores import energy, mahalanobis, variance
from reference import cases, close


@pytest.mark.parametrize("case", cases("toe", "09_scores.npz"))
def test_energy_and_variance_with_the_sign_turned(case):
    for temperature in case["temperatures"]:
        close(
            -energy(case["logits"], float(temperature)),
            case[f"energy_T{temperature:g}"],
            rtol=1e-5,
            atol=1e-6,
        )
    close(
        -variance(case["logits"], float(case["softmax_temperature"])),
        case["var"],
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    "logits",
    [
        1e3 * np.random.default_rng(0).standard_normal((7, 1000)),
        np.full((3, 1000), 1e3),
        np.random.default_rng(1).standard_normal((5, 1)),
        np.array([[1e6, -1e6], [-1e300, 1e300]]),
    ],
)
def test_energy_and_variance_of_extreme_logits(logits):
    for temperature in (0.045, 1.0, 100.0):
        below = (logits - logits.max(1, keepdims=True)) / temperature
        close(
            energy(logits, temperature),
            logits.max(1) + temperature * np.log(np.exp(below).sum(1)),
            rtol=1e-12,
            atol=1e-9,
        )
        close(
            variance(logits, temperature),
            (np.exp(below) / np.exp(below).sum(1, keepdims=True)).var(1),
            rtol=1e-9,
            atol=1e-15,
        )


def fpr95_by_the_rule(id_scores, ood_scores):
    """Section 3 of the specification, word by word."""
    thresholds = np.unique(np.concatenate([id_scores, ood_scores]))
    recalls = np.array([(id_scores >= t).mean() for t in thresholds])
    distance = np.abs(recalls - 0.95)
    recall = recalls[distance == distance.min()].max()
    chosen = thresholds[recalls == recall]
    return (ood_scores >= (chosen.max() if recall == 1 else chosen.min())).mean()


@pytest.mark.parametrize("case", cases("toe", "11_metrics.npz"))
def test_fpr95(case):
    for i in range(int(case["n"])):
        for rule in (fpr_at_tpr, fpr95_by_the_rule):
            assert rule(-case[f"in_{i}"], -case[f"out_{i}"]) == case[f"measures_{i}"][2]


@pytest.mark.parametrize(
    "n_id, n_ood", [(1, 1), (1, 40), (40, 1), (10, 10), (20, 7), (19, 300), (200, 3), (1000, 11)]
)
@pytest.mark.parametrize("distinct", [1, 2, 5, 30, 10**9])
def test_fpr95_with_ties_and_odd_sizes(n_id, n_ood, distinct):
    for seed in range(6):
        rng = np.random.default_rng([n_id, n_ood, distinct, seed])
        known, other = (
            rng.integers(0, distinct, n_id) + rng.integers(-1, 2),
            rng.integers(0, distinct, n_ood),
        )
        for a, b in ((known, other), (known + distinct, other), (known - 2 * distinct, other)):
            assert fpr_at_tpr(a.astype(float), b.astype(float)) == fpr95_by_the_rule(a, b)


def statistics_in_numpy(features, labels, normalize, batch_size=None):
    features = features.astype(np.float64)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = unit(features) if normalize else features
    at = np.arange(len(rows)) if batch_size is None else np.arange(len(rows)) // batch_size
    means = np.stack([rows[at[labels == k]].mean(0) for k in range(labels.max() + 1)])
    return unit(means) if normalize else means, np.linalg.inv(np.atleast_2d(np.cov(rows.T)))


@pytest.mark.parametrize("case", cases("toe", "12_class_stats.npz"))
def test_class_statistics(case):
    normalize = bool(case["normalize"])
    for given in (case["features"], case["features"].astype(np.float64)):
        statistics = class_statistics(given, case["labels"], normalize=normalize)
        close(statistics.means, case["class_means"], rtol=1e-5, atol=1e-6)
        close(statistics.precision, case["precision"], atol=1e-4 * np.abs(case["precision"]).max())
        historical = class_statistics(
            given, case["labels"], normalize=normalize, batch_index=int(case["batch_size"])
        )
        close(historical.means, case["class_means_batchindex"], rtol=1e-5, atol=1e-6)
        largest = statistics.precision.abs().max()
        assert (historical.precision - statistics.precision).abs().max() <= 1e-12 * largest
        assert statistics.counts.tolist() == np.bincount(case["labels"]).tolist()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "rows, width, classes, scale",
    [(160, 12, 6, 1.0), (50, 9, 1, 30.0), (40, 3, 40, 1e-3), (2, 1, 2, 1.0), (600, 64, 5, 1e4)],
)
def test_class_statistics_against_numpy(rows, width, classes, scale, normalize):
    rng = np.random.default_rng([rows, width, classes])
    labels = rng.permutation(np.arange(rows) % classes)
    features = (
        scale * (rng.standard_normal((classes, width))[labels] + rng.standard_normal((rows, width)))
    ).astype(np.float32)
    if width == 1 and normalize:
        features[:, 0] = [1, -1]
    for batch in (None, 1, 7):
        means, precision = statistics_in_numpy(features, labels, normalize, batch)
        found = class_statistics(features, labels, normalize=normalize, batch_index=batch)
        close(found.means, means, rtol=1e-9, atol=1e-9 * scale)
        close(found.precision, precision, rtol=1e-7, atol=1e-9 * np.abs(precision).max())
        assert found.condition == pytest.approx(np.linalg.cond(precision), rel=1e-6)


@pytest.mark.parametrize("case", cases("toe", "13_caption_selection.npz"))
def test_caption_selection(case):
    selected, scores = farthest_texts(
        case["text_features"], case["class_means"], case["precision"], float(case["ratio"])
    )
    close(scores, case["score"], rtol=1e-4, atol=1e-4)
    assert set(selected.tolist()) == set(case["selected"].tolist())
    assert (np.diff(scores[selected]) >= 0).all()
    assert selected.tolist() == case["order"][: len(selected)].tolist()


@pytest.mark.parametrize(
    "count, width, classes, condition",
    [(47, 24, 8, 10), (6, 5, 1, 10), (120, 16, 40, 6e5), (30, 8, 3, 1e8), (100, 512, 100, 1e8)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_selection_against_the_quadratic_form(count, width, classes, condition, dtype):
    rng = np.random.default_rng([count, width, classes])
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0]
    precision = ((axes * np.geomspace(25, 25 * condition, width)) @ axes.T).astype(
        dtype
    )  # in float32 condition 1e8 has eigenvalues below zero
    texts, means = (
        rng.standard_normal((count, width)).astype(np.float32),
        rng.standard_normal((classes, width)).astype(np.float32),
    )
    texts[1] = texts[0]
    unit = texts.astype(np.float64) / np.linalg.norm(
        texts.astype(np.float64), axis=1, keepdims=True
    )
    away = unit[:, None] - means
    wanted = (-0.5 * np.einsum("ncd,de,nce->nc", away, precision.astype(np.float64), away)).max(1)
    rows, scores = farthest_texts(torch.from_numpy(texts).double(), means, precision)
    close(scores, wanted, rtol=1e-8, atol=1e-6)
    assert len(rows) == int(0.15 * count)
    assert scores[0].item() == pytest.approx(scores[1].item(), rel=1e-12)
    close(farthest_texts(texts, means, precision)[1], wanted, rtol=1e-4, atol=1e-4)
    close(mahalanobis(unit, means, precision), wanted, rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("case", cases("toe", "14_descriptions.npz"))
def test_descriptions(case):
    descriptors = json.loads(str(case["descriptor_json"]))
    released = lambda templates: list(
        description_outliers(
            descriptors, ["any"], **RELEASE["descriptions"] | {"templates": templates}
        ).texts
    )
    assert released(False) == case["built"].tolist()
    assert released(True) == case["with_templates"].tolist()


def test_descriptions_that_are_odd():
    odd = {
        "nothing": [],
        "shrinks": ["photo", "a hat of a photo", " ", ""],
        "far": ["crème brûlée", "日本の塔", "crème brûlée"],
    }
    released = description_outliers(odd, ["any"], **RELEASE["descriptions"])
    assert len(released) == 5 * 7
    assert released.texts[7:11] == tuple(
        template.format("This is")
        for template in (
            "This is a blurry photo of {}",
            "This is a photo of many {}",
            "This is a photo of the large {}",
            "This is a photo of the small {}",
        )
    )
    assert released.texts[-1] == "This is a photo of the small This is a photo of crème brûlée"
    clean = description_outliers(odd, ["any"])
    assert [text.removeprefix("This is a photo of ") for text in clean] == [
        "photo",
        "a hat of a photo",
        "crème brûlée",
        "日本の塔",
    ]
    assert clean.counts["removed"] == {"repeated or blank": 3, "names of classes": 0}


def released_words(case, batch_size, **more):
    return word_outliers(
        torch.from_numpy(case["logits"]),
        case["vocabulary"],
        case["class_names"].tolist(),
        batch_size=batch_size,
        **RELEASE["words"],
        **more,
    )


@pytest.mark.parametrize("case", cases("toe", "15_words.npz"))
def test_words(case):
    sizes = case["batch_sizes"].tolist()
    for size in sizes:
        first = torch.cat(likely_tokens(case["logits"], batch_size=size)[:size])
        assert first.tolist() * 9 == case[f"first_batch_ids_bs{size}"].tolist()
        assert list(released_words(case, size).texts) == case[f"prompts_bs{size}"].tolist()
    assert released_words(case, None).texts == released_words(case, 1).texts
    assert (
        list(released_words(case, sizes[0], expand=True).texts)
        == case[f"expanded_from_bs{sizes[0]}"].tolist()
    )


def words_case(vocabulary, class_names=("hen",), images=5, seed=0):
    return {
        "logits": np.random.default_rng(seed)
        .standard_normal((images, len(vocabulary)))
        .astype(np.float32),
        "vocabulary": np.array(vocabulary),
        "class_names": np.array(class_names),
    }


def test_a_vocabulary_of_exactly_the_last_rank():
    case = words_case([f"W{i:02}rd" for i in range(55)])
    assert len(released_words(case, None)) == len(
        {v for row in likely_tokens(case["logits"]) for v in row.tolist()}
    )
    assert len(released_words(case, 2)) == 55
    assert [len(row) for row in likely_tokens(case["logits"], batch_size=2)] == [25, 55, 25, 55, 25]


def test_words_that_contain_blanks_keep_their_end_when_expanded():
    texts = released_words(words_case(["Fire Truck"] * 60), None, expand=True).texts
    assert texts == (
        "This is a photo of a fire truck",
        "This is a blurry photo of truck",
        "This is a photo of many truck",
        "This is a photo of the large truck",
        "This is a photo of the small truck",
    )


def test_all_words_are_removed():
    case = words_case(["the", "2", '"', "", "hen", "HEN"] * 10)
    for made in (lambda: released_words(case, 1), lambda: released_words(case, 3, expand=True)):
        with pytest.warns(UserWarning, match="No word is left of 5"):
            assert made().texts == ()


@pytest.mark.parametrize("case", cases("toe", "16_captions.npz"))
def test_captions(case):
    chosen, classes = case["captions"][case["index"]].tolist(), case["class_names"].tolist()
    assert tidy_captions(chosen, as_written=True) == case["texts"].tolist()
    as_written = dict(statistics=None, class_names=classes, text_features=None)
    assert (
        list(caption_outliers(chosen, **as_written, **RELEASE["captions"]).texts)
        == case["texts"].tolist()
    )
    assert (
        list(caption_outliers(chosen, **as_written, names="substring", as_written=True).texts)
        == case["texts_no_class_names"].tolist()
    )


@pytest.mark.parametrize(
    "captions, released, clean",
    [
        ([], [], []),
        (["", "\n", " "], ["", " "], []),
        (["\n\na \n", "a", "A"], ["A", "a", "a "], ["A", "a"]),
        (
            ["a kitchen", "a hen", "Hens", "then"],
            ["Hens", "a hen", "a kitchen", "then"],
            ["a kitchen", "then"],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:No caption is left")
def test_captions_that_are_odd(captions, released, clean):
    assert (
        list(caption_outliers(captions, None, None, ["hen"], **RELEASE["captions"]).texts)
        == released
    )
    assert list(caption_outliers(captions, None, None, ["hen"]).texts) == clean


def test_selected_captions_are_tidied():
    statistics = class_statistics(
        np.random.default_rng(0).standard_normal((40, 4)) + [5, 0, 0, 0],
        np.arange(40) % 2,
        normalize=True,
    )
    features = torch.eye(4)[torch.arange(20) % 4] * 3
    captions = [f"{'abcd'[i % 4]}{i // 4}\n" for i in range(20)]
    rows, scores = farthest_texts(features, statistics.means, statistics.precision, 0.5)
    found = caption_outliers(
        captions, features, statistics, ["hen"], keep=0.5, **RELEASE["captions"]
    )
    assert list(found.texts) == sorted(captions[i].strip() for i in rows)
    assert found.counts["removed"]["too near to the ID classes"] == 10
    assert not set("a") & {text[0] for text in found.texts}
    close(statistics.score(features), scores, rtol=1e-12)
