"""How long do features take? Cold against warm, decoding in threads against one thread, all in one
run on pictures made here.

python benchmarks/features.py                     600 JPEG photographs of 500 x 375 pixels, a tiny
encoder: decoding is what costs python benchmarks/features.py --backbone ViT-B-32 a real
architecture (random weights unless they are on this machine) python benchmarks/features.py --quick
a sixth of the pictures
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import zoom

from oodnb.backbones import load_backbone
from oodnb.datasets import load_dataset
from oodnb.features import extract, stream


def photographs(folder, count, size=(375, 500), seed=0):
    """Smooth colour fields with noise: they compress to about the size of ImageNet's JPEGs."""
    generator = np.random.default_rng(seed)
    coarse = zoom(generator.random((size[0] // 25, size[1] // 25, 3)), (25, 25, 1), order=1)
    for i in range(count):
        noise = generator.normal(0, 14, coarse.shape)
        picture = np.roll(coarse, 7 * i, axis=1) * 255 + noise
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
            folder / f"{i:05d}.jpg", quality=90
        )


def seconds(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="tiny-vit")
    parser.add_argument("--device", default=None)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="the numbers of threads take turns this often; medians are shown",
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    count = options.count // 6 if options.quick else options.count
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    backbone = load_backbone(options.backbone, device=options.device)
    print(
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} torch threads, {backbone!r}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["OODNB_HOME"] = str(Path(scratch) / "home")
        folder = Path(scratch) / "photographs"
        folder.mkdir()
        photographs(folder, count)
        time.sleep(2.1)
        first, dataset = seconds(lambda: load_dataset(folder))
        second, dataset = seconds(lambda: load_dataset(folder))
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(
            f"{count} pictures, {megabytes:.0f} MB; listing and fingerprint "
            f"{1000 * first:.0f} ms, again {1000 * second:.0f} ms"
        )
        extract(backbone, dataset.subset(range(8)), cache=False, progress=False)
        taken = {workers: [] for workers in sorted({0, 1, 2, 4, cores})}
        for _ in range(options.rounds):
            for workers in taken:
                taken[workers].append(
                    seconds(
                        lambda: extract(
                            backbone, dataset, cache=False, workers=workers, progress=False
                        )
                    )[0]
                )
        rows = [
            (
                f"cold, {workers} threads" if workers else "cold, no threads",
                statistics.median(times),
            )
            for workers, times in taken.items()
        ]
        cold, known = seconds(lambda: extract(backbone, dataset, progress=False))
        warm, again = seconds(lambda: extract(backbone, dataset, progress=False))
        assert torch.equal(known.image_features, again.image_features)
        rows += [("cold, written to the cache", cold), ("warm, read from the cache", warm)]
        rows.append(
            (
                "local features streamed",
                seconds(
                    lambda: sum(
                        len(chunk)
                        for chunk in stream(backbone, dataset, keep_bytes=0, progress=False)
                    )
                )[0],
            )
        )
        rows.append(
            (
                "local features kept",
                seconds(lambda: extract(backbone, dataset, local=True, progress=False))[0],
            )
        )
        rows.append(
            (
                "local features read",
                seconds(lambda: extract(backbone, dataset, local=True, progress=False))[0],
            )
        )
    print(f"\n{'':<30}{'seconds':>9}{'pictures/s':>12}{'times one thread':>18}")
    one = dict(rows)["cold, 1 threads"]
    for name, taken in rows:
        print(f"{name:<30}{taken:>9.3f}{count / taken:>12,.0f}{one / taken:>18.1f}")


if __name__ == "__main__":
    main()
