"""One pass over the pictures for all detectors, against one pass per detector, in the same run; or
new scores from a full cache. Seconds are processor time, so that a busy machine changes little.

python benchmarks/benchmark_pass.py                     the embedded world and its CLIP python
benchmarks/benchmark_pass.py --images 200        fewer pictures per set python
benchmarks/benchmark_pass.py --backbone tiny-vit a backbone without knowledge, for a machine without
the weights python benchmarks/benchmark_pass.py --rescore 85640     that many cached features x
1,000 classes (50,000 of 85,640 are ID, the rest four OOD sets), all zero-shot scores of global
features python benchmarks/benchmark_pass.py --local 2000        that many pictures x 196 regions x
1,000 classes streamed: the memory must not grow with the number
"""

import argparse
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from oodnb.backbones import load_backbone
from oodnb.benchmark import detector_names, run_benchmark
from oodnb.pipeline.cache import CacheEntry, Piece, keep
from oodnb.datasets import ImageSet, load_dataset
from oodnb.detectors import text_detectors, zero_shot
from oodnb.results import metrics_table

SCORES = ("mcm", "l_mcm", "gl_mcm", "max_logit", "energy", "msp", "entropy", "variance")
OOD = ("mini-near", "mini-plants", "mini-places", "mini-scenes", "mini-textures")
WIDTH, GRID, CLASSES = 512, (14, 14), 1000


def timed(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def peak():
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def some(images, n):
    return (
        images
        if not n or n >= len(images)
        else images.subset(np.linspace(0, len(images) - 1, n).astype(int))
    )


def both_ways(backbone, id_set, ood_sets, detectors, cache):
    """Seconds for one pass together and for one pass each, and the largest difference between their
    scores."""
    together, scores = timed(
        lambda: run_benchmark(backbone, id_set, ood_sets, detectors, cache=cache, progress=False)
    )
    each, single = timed(
        lambda: [
            run_benchmark(backbone, id_set, ood_sets, [d], cache=cache, progress=False)[d.name]
            for d in detectors
        ]
    )
    return (
        together,
        each,
        max(float((scores[d.name] - s).abs().max()) for d, s in zip(detectors, single)),
        scores,
    )


class StandIn:
    """A backbone of the size of ViT-B/16 that sees nothing: features are noise around one
    direction, so that only scoring costs."""

    name, pretrained, device, precision, embed_dim, grid, logit_scale, fingerprint = (
        "stand-in",
        "",
        torch.device("cpu"),
        "fp32",
        WIDTH,
        GRID,
        100.0,
        "stand-in",
    )

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.cone = torch.randn(WIDTH, generator=self.generator)

    def features(self, *shape):
        return self.cone + 0.6 * torch.randn(*shape, WIDTH, generator=self.generator)

    def preprocess(self, picture):
        return torch.zeros(1, 1, 1)

    def encode_images(self, pixels, local=False):
        known = self.features(len(pixels))
        return (known, self.features(len(pixels), GRID[0] * GRID[1])) if local else known


def made_set(name, count):
    return ImageSet(
        name,
        "test",
        [f"{i:06d}" for i in range(count)],
        np.full(count, -1),
        [],
        lambda i: None,
        f"made {name} {count}",
    )


def made_detectors(backbone, scores):
    return text_detectors(
        backbone.features(CLASSES),
        [f"class {i}" for i in range(CLASSES)],
        scores,
        fingerprint=backbone.fingerprint,
    )


def rescore(count):
    """All zero-shot scores of global features that lie in the cache, through run_benchmark."""
    backbone, known = StandIn(), round(count * 50_000 / 85_640)
    id_set, *ood_sets = [
        made_set(name, n)
        for name, n in (
            ("id", known),
            *(
                (f"ood{i}", len(part))
                for i, part in enumerate(np.array_split(range(count - known), 4))
            ),
        )
    ]
    detectors = made_detectors(backbone, [s for s in SCORES if "l_mcm" not in s])
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads; {count:,} cached "
        f"features x {CLASSES:,} classes, {len(detectors)} detectors: "
        f"{', '.join(d.name for d in detectors)}"
    )
    with tempfile.TemporaryDirectory() as home:
        for s in (id_set, *ood_sets):
            keep(
                CacheEntry(home, backbone, s),
                Piece(0, len(s), {"global": backbone.features(len(s))}, []),
            )
        wall = time.perf_counter()
        taken, scores = timed(
            lambda: run_benchmark(backbone, id_set, ood_sets, detectors, cache=home, progress=False)
        )
        print(
            f"run_benchmark from the cache  {taken:6.1f} s of processor time, "
            f"{time.perf_counter() - wall:.1f} s on the wall, {1e6 * taken / count:.0f} "
            f"us per picture; peak memory {peak():,.0f} MB"
        )
    print(
        f"metrics without intervals     {timed(lambda: metrics_table(scores, n_boot=0))[0]:6.1f} s"
    )
    return taken, scores


def stream_local(count):
    """GL-MCM and L-MCM over regions that are too many to keep, at two lengths."""
    backbone, grown = StandIn(), []
    detectors = made_detectors(backbone, ("mcm", "l_mcm", "gl_mcm"))
    whole = count * GRID[0] * GRID[1] * WIDTH * 4 / 1e6
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads; {count:,} pictures x "
        f"{GRID[0] * GRID[1]} regions x {CLASSES:,} classes ({whole:,.0f} MB of local "
        f"features), {len(detectors)} detectors"
    )
    for n in (count // 4, count):
        sets = made_set(f"id{n}", n // 2), made_set(f"ood{n}", n - n // 2)
        making = (
            timed(lambda: [backbone.encode_images(range(64), local=True) for _ in range(4)])[0]
            / 256
        )
        taken, _ = timed(
            lambda: run_benchmark(
                backbone, sets[0], [sets[1]], detectors, cache=False, progress=False
            )
        )
        grown.append(peak())
        print(
            f"{n:8,} pictures: {1000 * (taken / n - making):6.1f} ms per picture to score "
            f"({1000 * making:.1f} ms to make the noise are taken off), peak memory "
            f"{grown[-1]:,.0f} MB"
        )
    return grown


def one_pass(name, images):
    backbone = load_backbone(name)
    id_set, *ood_sets = [some(load_dataset(name), images) for name in ("mini", *OOD)]
    detectors = zero_shot(backbone, id_set, SCORES)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {backbone.device}; "
        f"{backbone.name}, {sum(map(len, (id_set, *ood_sets)))} pictures, "
        f"{len(detectors)} detectors"
    )
    print(f"{'':28}{'together':>10}{'each':>10}{'ratio':>8}   largest difference")
    for part in (id_set, *ood_sets):
        part[0]
    with tempfile.TemporaryDirectory() as home:
        run_benchmark(backbone, id_set, ood_sets, detectors, cache=Path(home), progress=False)
        for how, cache in (("from pictures", False), ("from cache", Path(home))):
            together, each, difference, scores = both_ways(
                backbone, id_set, ood_sets, detectors, cache
            )
            print(f"{how:28}{together:9.2f}s{each:9.2f}s{each / together:7.1f}x   {difference:.1e}")
    assert detector_names(scores) == list(SCORES)
    print(f"metrics with 1,000 resamples {timed(lambda: metrics_table(scores))[0]:8.2f}s")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--images", type=int, default=0, help="pictures per set; 0 for all")
    parser.add_argument(
        "--rescore", type=int, default=0, help="score this many cached features instead"
    )
    parser.add_argument(
        "--local", type=int, default=0, help="stream the regions of this many pictures instead"
    )
    options = parser.parse_args(arguments)
    if options.rescore:
        return rescore(options.rescore)
    if options.local:
        return stream_local(options.local)
    one_pass(options.backbone, options.images)


if __name__ == "__main__":
    main()
