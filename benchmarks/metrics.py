"""How fast and how equal are oodnb's metrics? Compared with scikit-learn, and the bootstrap with
the straightforward loop, in the same run. Times are processor time, in turns, so that a busy
machine changes little.

python benchmarks/metrics.py                    50,000 ID and 10,000 OOD scores, 1,000 resamples
python benchmarks/metrics.py --quick            a tenth of everything
python benchmarks/metrics.py --cases 100000     no times: all five metrics of that many random
                                                cases with ties, against scikit-learn

All five metrics of a table row must be FASTER times as fast as scikit-learn's, or it exits with 1.
"""

import argparse
import platform
import statistics
import time

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodnb import metrics

FASTER = 5  # all five metrics of a row take at most this part of scikit-learn's time


def milliseconds(functions, repeats):
    """Median processor time of each function, after one call to warm up."""
    times = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, taken in zip(functions, times):
            start = time.process_time()
            function()
            if turn:
                taken.append(1000 * (time.process_time() - start))
    return [statistics.median(taken) for taken in times]


def labelled(id_scores, ood_scores):
    return np.repeat([1, 0], [id_scores.size, ood_scores.size]), np.concatenate(
        [id_scores, ood_scores]
    )


def sklearn_curve(id_scores, ood_scores):
    """Recall and false positive rate of every threshold, from the highest down."""
    fpr, tpr, _ = roc_curve(*labelled(id_scores, ood_scores), drop_intermediate=False)
    return tpr, fpr


def interpolated_fpr95(id_scores, ood_scores):
    return np.interp(0.95, *sklearn_curve(id_scores, ood_scores))


def nearest_fpr95(id_scores, ood_scores):
    """Of the thresholds down to the first with recall 1 the one with the recall nearest to 95 %,
    the lower one of two."""
    tpr, fpr = sklearn_curve(id_scores, ood_scores)
    full = np.argmax(tpr == 1)
    return fpr[full - np.abs(tpr[full:0:-1] - 0.95).argmin()]


def at_least_fpr95(id_scores, ood_scores):
    """The first threshold from above with a recall of at least 95 %."""
    tpr, fpr = sklearn_curve(id_scores, ood_scores)
    return fpr[np.argmax(tpr >= 0.95)]


def sklearn_row(
    id_scores, ood_scores, id_positive=interpolated_fpr95, ood_positive=interpolated_fpr95
):
    labels, both = labelled(id_scores, ood_scores)
    return (
        roc_auc_score(labels, both),
        average_precision_score(labels, both),
        average_precision_score(1 - labels, -both),
        id_positive(id_scores, ood_scores),
        ood_positive(-ood_scores, -id_scores),
    )


def random_case(rng):
    """Scores with more or fewer ties: rounded, from a few levels, probabilities next to 1,
    neighbours in float64, all equal."""
    sizes, gap = np.exp(rng.uniform(0, np.log(300), 2)).astype(int), rng.normal(1, 1)
    id_scores, ood_scores = (
        rng.normal(gap, rng.uniform(0.2, 3), sizes[0]),
        rng.normal(0, 1, sizes[1]),
    )
    kinds = (
        lambda s: s,
        lambda s: s.round(2),
        lambda s: s.round(1),
        lambda s: s.round(),
        lambda s: np.clip(s, -0.5, 0.5),
        lambda s: s.astype(np.float16).astype(np.float64),
        lambda s: 1 / (1 + np.exp(-12 * s)),
        lambda s: 1 + 2.0**-52 * (s * 4).round(),
        lambda s: 1e9 * s.round(1),
        lambda s: 0 * s,
    )
    kind = kinds[
        rng.choice(len(kinds), p=[0.15, 0.2, 0.15, 0.1, 0.1, 0.08, 0.08, 0.08, 0.05, 0.01])
    ]
    return kind(id_scores), kind(ood_scores)


def disagreement(cases, seed=0):
    """(largest difference to scikit-learn of each metric, share of cases with tied scores, share
    with ties between ID and OOD)."""
    rng, worst, tied, across = np.random.default_rng(seed), np.zeros(len(metrics._METRICS)), 0, 0
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in range(cases):
            case = random_case(rng)
            row = metrics.detection_metrics(*case)
            worst = np.maximum(
                worst,
                np.abs(
                    np.array([row[name] for name in metrics._METRICS])
                    - sklearn_row(*case, nearest_fpr95, at_least_fpr95)
                ),
            )
            tied, across = tied + (row["ties"] > 0), across + (np.intersect1d(*case).size > 0)
    return dict(zip(metrics._METRICS, worst.tolist())), tied / cases, across / cases


def report_equality(cases, seed):
    start = time.process_time()
    worst, tied, across = disagreement(cases, seed)
    print(
        f"{cases:,} random cases (seed {seed}, {tied:.0%} with tied scores, {across:.0%} "
        f"with ties between ID and OOD), {time.process_time() - start:.0f} s; largest "
        f"difference to scikit-learn {sklearn.__version__}:"
    )
    for name, value in worst.items():
        print(f"  {name:20}{value:.1e}")
    return worst


def plain_bootstrap(function, id_scores, ood_scores, n_boot):
    """What one writes without thinking: draw, sort again, measure."""
    rng = np.random.default_rng(0)
    return [
        function(
            id_scores[rng.integers(id_scores.size, size=id_scores.size)],
            ood_scores[rng.integers(ood_scores.size, size=ood_scores.size)],
        )
        for _ in range(n_boot)
    ]


def report_speed(n_id, n_ood, resamples, repeats):
    rng = np.random.default_rng(0)
    pair = id_scores, ood_scores = rng.normal(1, 1, n_id), rng.normal(0, 1, n_ood)
    labels, both = labelled(*pair)
    loops = max(10, resamples // 50)
    single = [
        ("AUROC", lambda: metrics.auroc(*pair), lambda: roc_auc_score(labels, both)),
        ("AUPR", lambda: metrics.aupr(*pair), lambda: average_precision_score(labels, both)),
        (
            "FPR95, interpolated",
            lambda: metrics.fpr_at_tpr(*pair, rule="interpolate"),
            lambda: interpolated_fpr95(*pair),
        ),
        ("all five metrics", lambda: metrics.detection_metrics(*pair), lambda: sklearn_row(*pair)),
    ]
    rows = [(name, *milliseconds((ours, theirs), repeats)) for name, ours, theirs in single]
    for name, keys, function in (
        ("AUROC", ("auroc",), lambda i, o: roc_auc_score(*labelled(i, o))),
        ("all five metrics", tuple(metrics._METRICS), sklearn_row),
    ):
        ours, theirs = milliseconds(
            (
                lambda keys=keys: metrics.bootstrap_samples(*pair, keys, resamples),
                lambda function=function: plain_bootstrap(function, *pair, loops),
            ),
            3,
        )
        rows.append((f"bootstrap x {resamples}, {name}", ours, theirs * resamples / loops))
    print(
        f"{n_id} ID + {n_ood} OOD scores, medians; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, scikit-learn {sklearn.__version__}, {platform.machine()}"
    )
    print(f"(the loop around scikit-learn is timed on {loops} resamples and scaled)")
    print(f"{'':36}{'oodnb ms':>12}{'sklearn ms':>14}{'ratio':>9}")
    for name, ours, theirs in rows:
        print(f"{name:36}{ours:12.1f}{theirs:14.1f}{theirs / ours:8.1f}x")
    ratios = {name: theirs / ours for name, ours, theirs in rows}
    if ratios["all five metrics"] < FASTER:
        raise SystemExit(
            f"all five metrics should take at most a {FASTER}th of scikit-learn's time, and take "
            f"{1 / ratios['all five metrics']:.2f} of it"
        )
    return ratios


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--id", type=int, default=50_000)
    parser.add_argument("--ood", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--cases",
        type=int,
        default=0,
        help="compare the values of this many random cases instead of the times",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random cases")
    options = parser.parse_args(arguments)
    if options.cases:
        return report_equality(options.cases, options.seed)
    if options.quick:
        options.id, options.ood, options.resamples, options.repeats = 5_000, 1_000, 100, 3
    return report_speed(options.id, options.ood, options.resamples, options.repeats)


if __name__ == "__main__":
    main()
