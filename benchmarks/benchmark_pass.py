"""One pass over the pictures for all detectors, against one pass per detector, in the same run. Seconds are processor time, so that a busy machine changes little.

    python benchmarks/benchmark_pass.py                     the embedded world and its CLIP
    python benchmarks/benchmark_pass.py --images 200        fewer pictures per set
    python benchmarks/benchmark_pass.py --backbone tiny-vit a backbone without knowledge, for a machine without the weights
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from oodnb.backbones import load_backbone
from oodnb.benchmark import detector_names, run_benchmark
from oodnb.datasets import load_dataset
from oodnb.detectors import zero_shot
from oodnb.results import metrics_table

SCORES = ("mcm", "l_mcm", "gl_mcm", "max_logit", "energy", "msp", "entropy", "variance")
OOD = ("mini-near", "mini-plants", "mini-places", "mini-scenes", "mini-textures")


def timed(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def some(images, n):
    return images if not n or n >= len(images) else images.subset(np.linspace(0, len(images) - 1, n).astype(int))


def both_ways(backbone, id_set, ood_sets, detectors, cache):
    """Seconds for one pass together and for one pass each, and the largest difference between their scores."""
    together, scores = timed(lambda: run_benchmark(backbone, id_set, ood_sets, detectors, cache=cache, progress=False))
    each, single = timed(lambda: [run_benchmark(backbone, id_set, ood_sets, [d], cache=cache, progress=False)[d.name] for d in detectors])
    return together, each, max(float((scores[d.name] - s).abs().max()) for d, s in zip(detectors, single)), scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--images", type=int, default=0, help="pictures per set; 0 for all")
    options = parser.parse_args()
    backbone = load_backbone(options.backbone)
    id_set, *ood_sets = [some(load_dataset(name), options.images) for name in ("mini", *OOD)]
    detectors = zero_shot(backbone, id_set, SCORES)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {backbone.device}; {backbone.name}, {sum(map(len, (id_set, *ood_sets)))} pictures, {len(detectors)} detectors")
    print(f"{'':28}{'together':>10}{'each':>10}{'ratio':>8}   largest difference")
    for images in (id_set, *ood_sets): images[0]
    with tempfile.TemporaryDirectory() as home:
        run_benchmark(backbone, id_set, ood_sets, detectors, cache=Path(home), progress=False)
        for name, cache in (("from pictures", False), ("from cache", Path(home))):
            together, each, difference, scores = both_ways(backbone, id_set, ood_sets, detectors, cache)
            print(f"{name:28}{together:9.2f}s{each:9.2f}s{each / together:7.1f}x   {difference:.1e}")
    assert detector_names(scores) == list(SCORES)
    print(f"metrics with 1,000 resamples {timed(lambda: metrics_table(scores))[0]:8.2f}s")


if __name__ == "__main__":
    main()
