"""Do the intervals and tests of oodnb.metrics keep their word? Simulations with a known truth.

python benchmarks/intervals.py coverage     how often 95 % intervals hold the truth, by metric and
                                            number of images
python benchmarks/intervals.py paired       how often a paired test at 5 % rejects two detectors
                                            that are equally good
python benchmarks/intervals.py classes      intervals over pictures and over classes, where the
                                            pictures of a class resemble each other
python benchmarks/intervals.py --quick ...  a tenth of the worlds
"""

import argparse
import math
import warnings

import numpy as np
from scipy.stats import bootstrap, norm

from oodnb.metrics import (
    aupr,
    bootstrap_samples,
    detection_intervals,
    paired_test,
)

SHIFT = 1.0  # ID scores are N(1, 1), OOD scores N(0, 1)
NAMES = ("auroc", "aupr_in", "aupr_out", "fpr95_id_positive", "fpr95_ood_positive")


def truth(shift=SHIFT, spread=1.0):
    "The five metrics of two normal distributions, equally many of each."
    t = np.linspace(-12, 12 + shift, 400_001) * spread
    recall, passed = norm.sf((t - shift) / spread), norm.sf(t / spread)
    area = float(np.trapezoid((recall / np.maximum(recall + passed, 1e-300))[::-1], recall[::-1]))
    fpr = float(norm.sf(norm.isf(0.95) + shift / spread))
    auroc = float(norm.cdf(shift / spread / math.sqrt(2)))
    return dict(zip(NAMES, (auroc, area, area, fpr, fpr)))


def worlds(n, seed, m=None):
    rng = np.random.default_rng(seed)
    return rng.normal(SHIFT, 1, n), rng.normal(0, 1, m or n)


def bca(id_scores, ood_scores, n_boot, seed):
    "The bias-corrected interval of scipy, for AUPR-in."
    done = bootstrap(
        (id_scores, ood_scores),
        aupr,
        vectorized=False,
        n_resamples=n_boot,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return done.confidence_interval


def report_coverage(count, n_boot=500):
    "Share of 95 % intervals with the truth inside."
    true, found = truth(), {}
    print(f"{'images':>12}" + "".join(f"{name:>20}" for name in NAMES) + f"{'aupr_in, BCa':>16}")
    for n, m in ((50, 50), (100, 100), (200, 200), (400, 400), (1000, 1000), (50, 500), (500, 50)):
        inside = dict.fromkeys((*NAMES, "bca"), 0)
        # with unequal sides the truth of AUPR is another one
        here = true | ({} if n == m else {k: mixed(n, m, k) for k in ("aupr_in", "aupr_out")})
        tried = max(1, count // 4) if n == m == 50 else 0
        for seed in range(count):
            pair = worlds(n, (seed, n), m)
            for name, (low, high) in detection_intervals(*pair, n_boot=n_boot, seed=seed).items():
                inside[name] += low <= here[name] <= high
            if seed < tried:
                low, high = bca(*pair, n_boot, seed)
                inside["bca"] += low <= here["aupr_in"] <= high
        share = {
            k: inside[k] / (tried if k == "bca" else count) for k in inside if tried or k != "bca"
        }
        found[n, m] = share
        print(f"{n:>6}+{m:<5}" + "".join(f"{share[k]:>20.3f}" for k in NAMES), end="")
        print(f"{share['bca']:>16.3f}" if tried else "", flush=True)
    return found


def mixed(n, m, name):
    "AUPR of the two normal distributions where n are ID and m OOD."
    t = np.linspace(-12, 13, 400_001)
    sides = (n, norm.sf(t - SHIFT)), (m, norm.sf(t))
    if name == "aupr_out":
        sides = (m, norm.cdf(t)[::-1]), (n, norm.cdf(t - SHIFT)[::-1])
    (a, recall), (b, passed) = sides
    precision = a * recall / np.maximum(a * recall + b * passed, 1e-300)
    return float(np.trapezoid(precision[::-1], recall[::-1]))


def report_paired(count, n_boot=500):
    "Share of rejections at 5 % where nothing differs."
    found = {}
    metrics = ("auroc", "fpr95_id_positive", "fpr95_ood_positive")
    print(f"{'images':>8}{'own noise':>11}" + "".join(f"{name:>20}" for name in metrics))
    for n in (200, 1000):
        for noise in (0.3, 1.0):
            rejected = dict.fromkeys(metrics, 0)
            for seed in range(count):
                rng = np.random.default_rng((seed, n))
                common = rng.normal(SHIFT, 1, n), rng.normal(0, 1, n)
                a, b = ([s + rng.normal(0, noise, n) for s in common] for _ in range(2))
                for name in metrics:
                    tested = paired_test(*a, *b, name, n_boot=n_boot, seed=seed)
                    rejected[name] += tested["p_value"] < 0.05
            found[n, noise] = {name: rejected[name] / count for name in metrics}
            shares = "".join(f"{found[n, noise][name]:>20.3f}" for name in metrics)
            print(f"{n:>8}{noise:>11}" + shares, flush=True)
    return found


def report_classes(count, n_boot=500, per=20, apart=0.5):
    "Share of 95 % intervals of AUROC with the truth of all classes of the kind inside."
    spread = math.sqrt(1 + apart**2)
    true, found = truth(SHIFT, spread)["auroc"], {}
    print(f"{per} pictures per class; classes differ by {apart} standard deviations of a picture")
    print(f"{'classes':>8}{'over pictures':>16}{'over classes':>16}{'wider by':>10}")
    for many in (5, 10, 20, 40, 80):
        inside, width, labels = np.zeros(2), np.zeros(2), np.repeat(np.arange(many), per)
        for seed in range(count):
            rng = np.random.default_rng((seed, many))
            pair = [
                (shift + rng.normal(0, apart, many)[labels] + rng.normal(0, 1, labels.size))
                for shift in (SHIFT, 0)
            ]
            for k, groups in enumerate((None, (labels, labels))):
                drawn = bootstrap_samples(*pair, ("auroc",), n_boot, seed, groups)["auroc"]
                low, high = np.quantile(drawn, (0.025, 0.975))
                inside[k] += low <= true <= high
                width[k] += high - low
        found[many] = inside / count
        print(f"{many:>8}{inside[0] / count:>16.3f}{inside[1] / count:>16.3f}", end="")
        print(f"{width[1] / width[0]:>10.2f}", flush=True)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["coverage", "paired", "classes"])
    parser.add_argument("--worlds", type=int, default=2000, help="simulated data sets of each kind")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "the interval of an AUPR")
    reports = {"coverage": report_coverage, "paired": report_paired, "classes": report_classes}
    return reports[asked.what](asked.worlds // (10 if asked.quick else 1))


if __name__ == "__main__":
    main()
