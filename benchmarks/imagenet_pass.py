"""How many ImageNet-sized pictures per second does the benchmark take, and where does the time go?
JPEGs made here, through load_dataset and run_benchmark as they are.

    python benchmarks/imagenet_pass.py                             100 JPEGs of 500 x 375 pixels
                                                                   through a ViT-B/16 with random
                                                                   weights and through the embedded
                                                                   CLIP
    python benchmarks/imagenet_pass.py --images 1000 --size 640x480
    python benchmarks/imagenet_pass.py --backbone
            ViT-B-32 --weights random --workers 8 --precision bf16
    python benchmarks/imagenet_pass.py --decode                    pictures alone: per core, in
                                                                   threads, and what reading at a
                                                                   reduced size would save and
                                                                   change

"decode" is from the file to the pixels that the tower gets (open, decompress, resize, crop,
normalise), "encode" the tower, "score" all detectors over 1,000 classes, "rest" everything else.
Shares are of the time that the threads worked (on a GPU, encode is the time waited for it), so they
add up whether or not the threads overlap.
"""

import argparse
import logging
import os
import platform
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from features import photographs
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from oodnb.backbones import Backbone, load_backbone
from oodnb.benchmark import run_benchmark
from oodnb.datasets import load_dataset
from oodnb.detectors import text_detectors
from oodnb.pictures import open_rgb

SCORES, CLASSES, TARGET = ("mcm", "gl_mcm", "max_logit", "energy", "msp", "entropy"), 1000, 224
STAGES = ("decode", "encode", "score")


class Clock:
    """Seconds that each stage took, summed over threads."""

    def __init__(self):
        self.seconds, self.lock = dict.fromkeys(STAGES, 0.0), threading.Lock()

    def of(self, stage, function, clock=time.thread_time):
        def timed(*arguments, **options):
            start = clock()
            try:
                return function(*arguments, **options)
            finally:
                with self.lock:
                    self.seconds[stage] += clock() - start

        return timed


@dataclass
class Timed:
    """A detector whose work is counted as score."""

    detector: object
    clock: Clock

    def __post_init__(self):
        self.name, self.needs_local, self.class_names = (
            self.detector.name,
            self.detector.needs_local,
            self.detector.class_names,
        )
        self.score, self.predict = (
            self.clock.of("score", self.detector.score),
            self.clock.of("score", self.detector.predict),
        )


def some_backbone(name, weights, device, precision):
    if weights != "random":
        return load_backbone(name, weights, device, precision)
    logging.disable(logging.WARNING)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return Backbone(
        model, preprocess, open_clip.get_tokenizer(name), name, "random", device, precision
    )


def measure(backbone, sets, batch_size):
    """(pictures per second on the wall, seconds per stage and in all) of one uncached pass."""
    clock = Clock()
    vectors = torch.randn(CLASSES, backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    detectors = [
        Timed(d, clock)
        for d in text_detectors(vectors, [f"class {i}" for i in range(CLASSES)], SCORES)
    ]
    backbone.preprocess = clock.of("decode", backbone.preprocess)
    backbone.encode_images = clock.of(
        "encode",
        backbone.encode_images,
        time.perf_counter
        if backbone.device.type == "cuda"
        else time.process_time
        if torch.get_num_threads() > 1
        else time.thread_time,
    )
    known, *others = [replace(s, read=clock.of("decode", s.read)) for s in sets]
    wall, work = time.perf_counter(), time.process_time()
    table = run_benchmark(
        backbone, known, others, detectors, cache=False, batch_size=batch_size, progress=False
    )
    return len(table) / (time.perf_counter() - wall), clock.seconds | {
        "all": max(time.process_time() - work, sum(clock.seconds.values()))
    }


def one_pass(name, weights, sets, options):
    backbone, count = (
        some_backbone(name, weights, options.device, options.precision),
        sum(map(len, sets)),
    )
    backbone.encode_images(torch.zeros(1, 3, *backbone.image_size), local=True)
    rate, seconds = measure(backbone, sets, options.batch)
    seconds["rest"] = seconds["all"] - sum(seconds[s] for s in STAGES)
    print(
        f"{name:16}{str(backbone.device):>6}{backbone.precision:>6}{rate:12.1f}"
        + "".join(
            f"{1000 * seconds[s] / count:9.2f} ms {seconds[s] / seconds['all']:4.0%}"
            for s in (*STAGES, "rest")
        )
    )
    return rate, {s: seconds[s] / count for s in (*STAGES, "rest")}


def decode_alone(dataset, preprocess, threads):
    """(pictures per second on the wall, processor seconds per picture) without any tower."""
    wall, work = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: preprocess(dataset.read(i)) is None, range(len(dataset))))
    return len(dataset) / (time.perf_counter() - wall), (time.process_time() - work) / len(dataset)


def reduced(path):
    """The picture as JPEG decodes it at half, a quarter or an eighth of its size, if that still
    covers what the tower needs."""
    with Image.open(path) as image:
        image.draft("RGB", (TARGET, TARGET))
        return image.convert("RGB")


def report_decoding(folder, dataset, cores):
    preprocess = image_transform_v2(PreprocessCfg(size=(TARGET, TARGET)), is_train=False)
    paths = sorted((folder / "known").rglob("*.jpg"))
    steps = [
        ("open and decompress", open_rgb),
        ("and resize, crop, normalise", lambda path: preprocess(open_rgb(path))),
        ("the same from a reduced picture", lambda path: preprocess(reduced(path))),
    ]
    print(f"{'one core':36}{'ms':>8}{'pictures/s':>12}")
    for name, function in steps:
        start = time.process_time()
        for path in paths:
            function(path)
        taken = (time.process_time() - start) / len(paths)
        print(f"{name:36}{1000 * taken:8.2f}{1 / taken:12.0f}")
    difference = max(
        float((preprocess(open_rgb(path)) - preprocess(reduced(path))).abs().max())
        for path in paths[:20]
    )
    print(
        "largest difference of a pixel between full and reduced reading: "
        f"{difference:.3f} (pixels have standard deviation 1)"
    )
    for threads in sorted({1, 2, 4, cores}):
        rate, work = decode_alone(dataset, preprocess, threads)
        print(
            f"{threads} threads: {rate:.0f} pictures/s on the wall, {1000 * work:.2f} ms "
            "of processor time each"
        )


def made(folder, count, size):
    """Two folders of JPEGs, half of them ID."""
    for seed, (name, n) in enumerate((("known", count - count // 2), ("other", count // 2))):
        (folder / name).mkdir()
        photographs(folder / name, n, size, seed)
    return [load_dataset(folder / name) for name in ("known", "other")]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument(
        "--size", default="500x375", help="width x height of the JPEGs, multiples of 25"
    )
    parser.add_argument(
        "--backbone",
        nargs="*",
        default=["ViT-B-16", "mini"],
        help="'mini' has weights; other names are open_clip's",
    )
    parser.add_argument("--weights", default="random", help="'random', or a published tag")
    parser.add_argument("--device")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--decode", action="store_true")
    options = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        sets = made(Path(scratch), options.images, (height, width))
        bytes_each = np.mean([path.stat().st_size for path in Path(scratch).rglob("*.jpg")])
        print(
            f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} torch "
            f"threads, Python {platform.python_version()}, torch {torch.__version__}; "
            f"{options.images} JPEGs of {options.size}, {bytes_each / 1000:.0f} kB each"
        )
        if options.decode:
            return report_decoding(Path(scratch), sets[0], cores)
        print(
            f"{'':28}{'pictures/s':>12}"
            + "".join(f"{s:>17}" for s in (*STAGES, "rest"))
            + "   per picture; share"
        )
        return {
            name: one_pass(name, None if name == "mini" else options.weights, sets, options)
            for name in options.backbone
        }


if __name__ == "__main__":
    main()
