"""How fast are oodnb's metrics? Compared with scikit-learn, and its bootstrap with the straightforward loop, in the same run.

    python benchmarks/metrics.py                50,000 ID and 10,000 OOD scores, 1,000 resamples
    python benchmarks/metrics.py --quick        a tenth of everything
"""

import argparse
import platform
import statistics
import time

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodnb import metrics


def milliseconds(function, repeats):
    """Median wall time, after one call to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def labelled(id_scores, ood_scores):
    return np.repeat([1, 0], [id_scores.size, ood_scores.size]), np.concatenate([id_scores, ood_scores])


def sklearn_fpr95(id_scores, ood_scores):
    fpr, tpr, _ = roc_curve(*labelled(id_scores, ood_scores), drop_intermediate=False)
    return np.interp(0.95, tpr, fpr)


def sklearn_row(id_scores, ood_scores):
    labels, both = labelled(id_scores, ood_scores)
    return (roc_auc_score(labels, both), average_precision_score(labels, both), average_precision_score(1 - labels, -both),
            sklearn_fpr95(id_scores, ood_scores), sklearn_fpr95(-ood_scores, -id_scores))


def plain_bootstrap(function, id_scores, ood_scores, n_boot):
    """What one writes without thinking: draw, sort again, measure."""
    rng = np.random.default_rng(0)
    return [function(id_scores[rng.integers(id_scores.size, size=id_scores.size)], ood_scores[rng.integers(ood_scores.size, size=ood_scores.size)]) for _ in range(n_boot)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", type=int, default=50_000)
    parser.add_argument("--ood", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.id, options.ood, options.resamples, options.repeats = 5_000, 1_000, 100, 3
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(1, 1, options.id), rng.normal(0, 1, options.ood)
    labels, both = labelled(id_scores, ood_scores)
    loops = max(10, options.resamples // 50)

    single = [
        ("AUROC", lambda: metrics.auroc(id_scores, ood_scores), lambda: roc_auc_score(labels, both)),
        ("AUPR", lambda: metrics.aupr(id_scores, ood_scores), lambda: average_precision_score(labels, both)),
        ("FPR95, interpolated", lambda: metrics.fpr_at_tpr(id_scores, ood_scores, rule="interpolate"), lambda: sklearn_fpr95(id_scores, ood_scores)),
        ("all five metrics", lambda: metrics.detection_metrics(id_scores, ood_scores), lambda: sklearn_row(id_scores, ood_scores)),
    ]
    rows = [(name, milliseconds(ours, options.repeats), milliseconds(theirs, options.repeats)) for name, ours, theirs in single]
    for name, keys, function in (("AUROC", ("auroc",), lambda i, o: roc_auc_score(*labelled(i, o))), ("all five metrics", tuple(metrics._METRICS), sklearn_row)):
        ours = milliseconds(lambda keys=keys: metrics.bootstrap_samples(id_scores, ood_scores, keys, options.resamples), 3)
        theirs = milliseconds(lambda function=function: plain_bootstrap(function, id_scores, ood_scores, loops), 3) * options.resamples / loops
        rows.append((f"bootstrap x {options.resamples}, {name}", ours, theirs))

    print(f"{options.id} ID + {options.ood} OOD scores, medians; Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}, {platform.machine()}")
    print(f"(the loop around scikit-learn is timed on {loops} resamples and scaled)")
    print(f"{'':36}{'oodnb ms':>12}{'sklearn ms':>14}{'ratio':>9}")
    for name, ours, theirs in rows:
        print(f"{name:36}{ours:12.1f}{theirs:14.1f}{theirs / ours:8.1f}x")


if __name__ == "__main__":
    main()
