"""Metrics on generated scores: invariances, a literal reading of the definitions, and scikit-learn
as oracle."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from scripts import load
from pytorch_ood.metrics import OODMetrics
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from oodnb.metrics import (
    MIN_FOR_AUPR,
    aupr,
    auroc,
    bootstrap_ci,
    bootstrap_samples,
    detection_intervals,
    detection_metrics,
    fpr_at_tpr,
    paired_test,
)

steady = settings(max_examples=60, derandomize=True, deadline=None)
levels = st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_id_positive", "fpr95_ood_positive")


def one_side(elements):
    return st.lists(elements, min_size=1, max_size=40).map(np.array)


coarse = one_side(st.integers(-4, 4).map(float))
fine = one_side(st.floats(-1e6, 1e6))
scores = st.one_of(st.tuples(coarse, coarse), st.tuples(fine, fine))


def as_labels(id_scores, ood_scores, positive="id"):
    """Labels and scores in scikit-learn's form."""
    labels = np.repeat([1, 0], [len(id_scores), len(ood_scores)])
    both = np.concatenate([id_scores, ood_scores])
    return (labels, both) if positive == "id" else (1 - labels, -both)


def literal_fpr(id_scores, ood_scores, tpr, positive, rule):
    """The rules word by word, threshold by threshold."""
    labels, both = as_labels(id_scores, ood_scores, positive)
    thresholds = np.unique(both)[::-1]
    recall = np.array([(both[labels == 1] >= t).mean() for t in thresholds])
    fpr = np.array([(both[labels == 0] >= t).mean() for t in thresholds])
    if rule == "at_least":
        return fpr[np.argmax(recall >= tpr)]
    first_full = np.argmax(recall == 1)
    distance = [
        abs((both[labels == 1] >= t).sum() / (labels == 1).sum() - tpr)
        for t in thresholds[: first_full + 1]
    ]
    best = first_full
    for j in range(first_full, -1, -1):
        if distance[j] < distance[best]:
            best = j
    return fpr[best]


def as_tuple(id_scores, ood_scores):
    return tuple(detection_metrics(id_scores, ood_scores).values())


@steady
@given(scores)
def test_scikit_learn_agrees(pair):
    labels, both = as_labels(*pair)
    assert auroc(*pair) == pytest.approx(roc_auc_score(labels, both), abs=1e-12)
    assert aupr(*pair) == pytest.approx(average_precision_score(labels, both), abs=1e-12)
    assert aupr(*pair, positive="ood") == pytest.approx(
        average_precision_score(1 - labels, -both), abs=1e-12
    )


@steady
@given(scores, levels, st.sampled_from(["id", "ood"]))
def test_interpolated_fpr_reads_scikit_learns_curve(pair, tpr, positive):
    fpr, recall, _ = roc_curve(*as_labels(*pair, positive), drop_intermediate=False)
    assert fpr_at_tpr(*pair, tpr, positive, "interpolate") == pytest.approx(
        np.interp(tpr, recall, fpr), abs=1e-12
    )


@steady
@given(scores, levels, st.sampled_from(["id", "ood"]), st.sampled_from(["nearest", "at_least"]))
def test_fpr_rules_word_by_word(pair, tpr, positive, rule):
    assert fpr_at_tpr(*pair, tpr, positive, rule) == pytest.approx(
        literal_fpr(*pair, tpr, positive, rule), abs=1e-15
    )


def of_pytorch_ood(id_scores, ood_scores):
    "What pytorch-ood says about the same scores; it wants outlier scores, and OOD labelled -1."
    metrics = OODMetrics()
    labels = np.repeat([1, -1], [len(id_scores), len(ood_scores)])
    metrics.update(-torch.tensor(np.concatenate([id_scores, ood_scores])), torch.tensor(labels))
    return metrics.compute()


def check_beside_pytorch_ood(pair):
    "AUROC and FPR95 are the same numbers; its AUPR is the trapezoid of our curve."
    theirs, ours = of_pytorch_ood(*pair), detection_metrics(*pair)
    assert ours["auroc"] == pytest.approx(theirs["AUROC"], abs=1e-12)
    assert ours["fpr95_ood_positive"] == pytest.approx(theirs["FPR95TPR"], abs=1e-12)
    for name, positive in (("AUPR-IN", "id"), ("AUPR-OUT", "ood")):
        precision, recall, _ = precision_recall_curve(*as_labels(*pair, positive))
        assert theirs[name] == pytest.approx(auc(recall, precision), abs=1e-9)
    return theirs, ours


@steady
@given(scores.filter(lambda pair: len(np.unique(np.concatenate(pair))) > 1))
def test_pytorch_ood_computes_the_same(pair):
    check_beside_pytorch_ood(pair)


def test_pytorch_ood_on_continuous_and_on_tied_scores():
    rng = np.random.default_rng(0)
    fine = rng.normal(1, 1, 500), rng.normal(0, 1, 500)
    tied = [np.round(side / 2) for side in fine]
    theirs, ours = check_beside_pytorch_ood(fine)
    assert ours["aupr_in"] == pytest.approx(theirs["AUPR-IN"], abs=2e-3)
    nearest = fpr_at_tpr(*fine, positive="ood", rule="nearest")
    theirs, ours = check_beside_pytorch_ood(tied)
    assert theirs["AUPR-IN"] - ours["aupr_in"] > 0.02  # lines between tied scores flatter
    assert abs(nearest - theirs["FPR95TPR"]) > 0.01


@steady
@given(scores, st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(pair, random):
    shuffled = [np.array(random.sample(list(side), len(side))) for side in pair]
    assert as_tuple(*shuffled) == as_tuple(*pair)


@steady
@given(st.tuples(coarse, coarse), st.floats(0.01, 100), st.floats(-100, 100))
def test_affine_and_monotone_changes_do_not_matter(pair, slope, shift):
    assert as_tuple(*(slope * side + shift for side in pair)) == as_tuple(*pair)
    assert as_tuple(*(np.arctan(side) for side in pair)) == as_tuple(*pair)
    assert as_tuple(*(side.astype(int) for side in pair)) == as_tuple(*pair)


@steady
@given(scores)
def test_swapping_the_sides(pair):
    id_scores, ood_scores = pair
    there, back = (
        detection_metrics(id_scores, ood_scores),
        detection_metrics(-ood_scores, -id_scores),
    )
    assert back["auroc"] == there["auroc"]
    assert (back["aupr_in"], back["aupr_out"]) == (there["aupr_out"], there["aupr_in"])
    for rule in ("nearest", "at_least", "interpolate"):
        assert fpr_at_tpr(*pair, positive="ood", rule=rule) == fpr_at_tpr(
            -ood_scores, -id_scores, positive="id", rule=rule
        )
    assert there["fpr95_id_positive"] == fpr_at_tpr(*pair, positive="id", rule="nearest")
    assert there["fpr95_ood_positive"] == fpr_at_tpr(*pair, positive="ood", rule="at_least")
    assert (back["n_id"], back["n_ood"], back["ties"]) == (
        there["n_ood"],
        there["n_id"],
        there["ties"],
    )
    assert auroc(ood_scores, id_scores) == pytest.approx(1 - there["auroc"], abs=1e-15)


@steady
@given(st.tuples(coarse, coarse))
def test_ties_count_half_and_are_counted(pair):
    id_scores, ood_scores = pair
    wins = (id_scores[:, None] > ood_scores).mean() + (id_scores[:, None] == ood_scores).mean() / 2
    row = detection_metrics(id_scores, ood_scores)
    assert row["auroc"] == pytest.approx(wins, abs=1e-14)
    both = list(np.concatenate(pair))
    assert row["ties"] == sum(both.count(score) > 1 for score in both)


@steady
@given(scores)
def test_float32_tensors_and_lists_are_the_same(pair):
    pair = [side.astype(np.float32) for side in pair]
    assert (
        as_tuple(*(torch.from_numpy(side) for side in pair))
        == as_tuple(*pair)
        == as_tuple(*(side.tolist() for side in pair))
    )


@pytest.mark.parametrize(
    "id_scores, ood_scores, expected",
    [
        (
            [1, 1, 1],
            [1, 1],
            dict(
                auroc=0.5,
                aupr_in=0.6,
                aupr_out=0.4,
                fpr95_id_positive=1.0,
                fpr95_ood_positive=1.0,
                ties=5,
            ),
        ),
        (
            [3, 4],
            [1, 2],
            dict(
                auroc=1.0,
                aupr_in=1.0,
                aupr_out=1.0,
                fpr95_id_positive=0.0,
                fpr95_ood_positive=0.0,
                ties=0,
            ),
        ),
        ([1, 2], [3, 4], dict(auroc=0.0, fpr95_id_positive=1.0, fpr95_ood_positive=1.0, ties=0)),
        ([2], [1], dict(auroc=1.0, aupr_in=1.0, fpr95_id_positive=0.0, n_id=1, n_ood=1)),
        ([1], [2, 0], dict(auroc=0.5, aupr_in=0.5, fpr95_id_positive=0.5)),
        ([np.inf, 0.0], [-np.inf, 0.0], dict(auroc=0.875, ties=2)),
        ([0.0], [-0.0], dict(auroc=0.5, ties=2)),
    ],
)
def test_degenerate_inputs(id_scores, ood_scores, expected):
    row = detection_metrics(id_scores, ood_scores)
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    "scores, message",
    [
        ([], "id_scores is empty"),
        ([0.1, np.nan], "1 NaN of 2, the first at index 1"),
        (np.ones(2, np.float16), "float16"),
        (torch.ones(2, dtype=torch.bfloat16), "float32 or better"),
        (torch.ones(2, dtype=torch.float16), "half precision"),
        (np.ones((2, 2)), r"shape \[2, 2\]"),
        (np.float64(1.0), r"shape \[\]"),
        (["a", "b"], "dtype"),
        (np.array([1 + 2j]), "complex"),
        (np.array([2**62, 2**62 + 1]), r"2\*\*53"),
    ],
)
def test_refused_inputs(scores, message):
    for function in (auroc, aupr, fpr_at_tpr, detection_metrics, bootstrap_ci):
        with pytest.raises(ValueError, match=message):
            function(scores, [0.0, 1.0])


def test_bootstrap_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(1, 1, 120).round(1), rng.normal(0, 1, 80).round(1)
    fast = bootstrap_samples(id_scores, ood_scores, METRICS, n_boot=50, seed=3)
    plain = {name: lambda i, o, name=name: detection_metrics(i, o)[name] for name in METRICS}
    slow = bootstrap_samples(id_scores, ood_scores, plain, n_boot=50, seed=3)
    for name in METRICS:
        np.testing.assert_allclose(fast[name], slow[name], rtol=0, atol=1e-14)
    assert not np.array_equal(
        fast["auroc"], bootstrap_samples(id_scores, ood_scores, n_boot=50, seed=4)["auroc"]
    )


def test_bootstrap_draws_do_not_depend_on_scores_or_block_size():
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(1, 1, 3000), rng.normal(0, 1, 2000)
    many, few = (
        bootstrap_samples(id_scores, ood_scores, n_boot=n, seed=0)["auroc"] for n in (120, 7)
    )
    np.testing.assert_array_equal(many[:7], few)
    np.testing.assert_allclose(
        bootstrap_samples(np.exp(id_scores), np.exp(ood_scores), n_boot=7)["auroc"], few, atol=1e-15
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth, inside = norm.cdf(1 / 2**0.5), 0
    for seed in range(100):
        low, high = bootstrap_ci(
            rng.normal(1, 1, 150), rng.normal(0, 1, 150), n_boot=300, seed=seed
        )
        inside += low <= truth <= high
    assert 88 <= inside <= 100


def test_intervals_of_one_row_are_the_single_intervals():
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(1, 1, 90), rng.normal(0, 1, 60)
    row = detection_intervals(id_scores, ood_scores, n_boot=200, level=0.9, seed=1)
    assert tuple(row) == METRICS
    for name in METRICS:
        assert row[name] == bootstrap_ci(id_scores, ood_scores, name, n_boot=200, level=0.9, seed=1)


@pytest.mark.parametrize("method", ["delong", "bootstrap"])
def test_paired_test_is_calibrated_under_no_difference(method):
    rng = np.random.default_rng(0)
    rejected = 0
    for seed in range(150):
        id_common, ood_common = rng.normal(1, 1, 80), rng.normal(0, 1, 80)
        a, b = (
            (id_common + rng.normal(0, 0.5, 80), ood_common + rng.normal(0, 0.5, 80))
            for _ in range(2)
        )
        rejected += paired_test(*a, *b, method=method, n_boot=200, seed=seed)["p_value"] < 0.05
    assert 1 <= rejected <= 17


def test_paired_test_sees_what_separate_intervals_hide():
    rng = np.random.default_rng(1)
    id_a, ood_a = rng.normal(1.5, 1, 300), rng.normal(0, 1, 300)
    id_b, ood_b = id_a + rng.normal(0, 0.5, 300), ood_a + rng.normal(0, 0.5, 300)
    there, back = paired_test(id_a, ood_a, id_b, ood_b), paired_test(id_b, ood_b, id_a, ood_a)
    assert there["p_value"] < 0.01 and there["low"] > 0
    assert back["difference"] == -there["difference"] and back["p_value"] == pytest.approx(
        there["p_value"]
    )
    for metric in ("fpr95_id_positive", lambda i, o: fpr_at_tpr(i, o, rule="interpolate")):
        row = paired_test(id_a, ood_a, id_b, ood_b, metric, n_boot=200)
        assert row["method"] == "bootstrap" and row["low"] <= row["difference"] <= row["high"]


def test_delong_variance_matches_repeated_draws():
    rng = np.random.default_rng(2)
    differences, widths = [], []
    for _ in range(300):
        id_a, ood_a = rng.normal(1, 1, 60), rng.normal(0, 1, 90)
        row = paired_test(
            id_a, ood_a, id_a + rng.normal(0, 0.7, 60), ood_a + rng.normal(0, 0.7, 90)
        )
        differences.append(row["difference"])
        widths.append((row["high"] - row["low"]) / (2 * norm.ppf(0.975)))
    assert np.mean(widths) == pytest.approx(np.std(differences), rel=0.15)


@pytest.fixture(scope="module")
def benchmark():
    return load("benchmarks", "metrics")


def test_a_sample_of_the_benchmarks_cases(benchmark, capsys):
    """All five metrics against scikit-learn; the benchmark does it for 100,000 cases."""
    assert max(benchmark.main(["--cases", "400", "--seed", "1"]).values()) < 1e-12
    _, tied, across = benchmark.disagreement(100)
    assert tied > 0.5 and across > 0.3
    assert "400 random cases" in capsys.readouterr().out


def plain_draws(pair, groups, n_boot, seed):
    "Whole groups, drawn and put together one by one, from the same random streams."
    drawn = []
    for side, (values, labels) in enumerate(zip(pair, groups)):
        codes, rng = np.unique(labels, return_inverse=True)[1], np.random.default_rng((side, seed))
        many = codes.max() + 1
        chosen = rng.integers(many, size=(n_boot, many), dtype=np.uint32)
        drawn.append([np.concatenate([values[codes == g] for g in row]) for row in chosen])
    return list(zip(*drawn))


def test_groups_are_drawn_as_a_whole():
    rng = np.random.default_rng(0)
    pair = rng.normal(1, 1, 90).round(1), rng.normal(0, 1, 60).round(1)
    groups = rng.integers(7, size=90), rng.choice(list("abcde"), 60)  # of unequal sizes
    fast = bootstrap_samples(*pair, n_boot=40, seed=5, groups=groups)
    slow = [detection_metrics(*drawn) for drawn in plain_draws(pair, groups, 40, 5)]
    for name in METRICS:
        np.testing.assert_allclose(fast[name], [row[name] for row in slow], rtol=0, atol=1e-14)


def test_images_without_a_class_stand_for_themselves():
    rng = np.random.default_rng(0)
    pair, alone = (rng.normal(1, 1, 40), rng.normal(0, 1, 30)), (np.arange(40), np.full(30, -1))
    for groups in (alone, (None, alone[1]), (alone[0], None)):
        assert bootstrap_ci(*pair, groups=groups, n_boot=50) == bootstrap_ci(*pair, n_boot=50)


@pytest.mark.parametrize(
    "groups, message",
    [
        (([0, 0, 0], None), "groups of the ID images knows a single class"),
        ((None, [0]), r"groups of the OOD images has shape \[1\]"),
        (([0, 1, 2],), "groups has 1 parts"),
    ],
)
def test_groups_that_cannot_be_drawn_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci([1.0, 2.0, 3.0], [0.0, 1.5], groups=groups)
    for method in ("delong", "bootstrap"):
        with pytest.raises(ValueError, match=message):
            paired_test(
                [1.0, 2.0, 3.0], [0.0, 1.5], [3.0, 1.0, 2.0], [0.5, 1], method=method, groups=groups
            )


def of_classes(rng, shift, many, per):
    "Scores of classes that are easy or hard as a whole, and their labels."
    labels = np.repeat(np.arange(many), per)
    return shift + rng.normal(0, 1, many)[labels] + rng.normal(0, 1, many * per), labels


def test_intervals_over_classes_cover_other_classes():
    rng, truth, inside = np.random.default_rng(0), norm.cdf(0.5), dict(pictures=0, classes=0)
    for seed in range(100):
        (known, a), (strange, b) = of_classes(rng, 1, 30, 10), of_classes(rng, 0, 30, 10)
        for over, groups in (("pictures", None), ("classes", (a, b))):
            low, high = bootstrap_ci(known, strange, n_boot=200, seed=seed, groups=groups)
            inside[over] += low <= truth <= high
    assert inside["pictures"] < 80 and inside["classes"] >= 87


def test_delong_over_classes_is_calibrated_and_agrees_with_the_bootstrap():
    rng, rejected, widths = np.random.default_rng(0), 0, []
    for seed in range(100):
        (known, a), (strange, b) = of_classes(rng, 1, 30, 5), of_classes(rng, 0, 30, 5)
        pair = [
            side + rng.normal(0, 0.5, 30)[labels]
            for _ in range(2)
            for side, labels in ((known, a), (strange, b))
        ]
        row = paired_test(*pair, groups=(a, b))
        rejected += row["p_value"] < 0.05
        if seed < 20:
            drawn = paired_test(*pair, method="bootstrap", n_boot=200, groups=(a, b))
            widths.append((drawn["high"] - drawn["low"]) / (row["high"] - row["low"]))
    assert 1 <= rejected <= 13
    assert np.mean(widths) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("n, heard", [(50, 1), (MIN_FOR_AUPR, 0)])
def test_aupr_intervals_of_few_images_come_with_a_warning(n, heard):
    pair = np.arange(n) + 0.5, np.arange(n)
    for act in (
        lambda: bootstrap_ci(*pair, "aupr_in", n_boot=2),
        lambda: detection_intervals(*pair, 2),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            act()
        assert len(said) == heard and all("too narrow" in str(w.message) for w in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap_ci(*pair, "auroc", n_boot=2)


def test_the_simulations_of_intervals_run(capsys):
    simulations = load("benchmarks", "intervals")
    assert simulations.truth()["auroc"] == pytest.approx(norm.cdf(1 / 2**0.5), abs=1e-12)
    assert simulations.mixed(1, 1, "aupr_in") == pytest.approx(simulations.truth()["aupr_in"])
    found = simulations.report_classes(20, n_boot=50)
    assert found[80][1] > found[80][0] and "over classes" in capsys.readouterr().out
