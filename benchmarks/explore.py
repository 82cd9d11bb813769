"""How long an explorer takes from a moved control to the new picture: the median of many moves, in
CPU and wall time, on the mini world.

python benchmarks/explore.py                30 moves per explorer python benchmarks/explore.py
--quick        8 moves python benchmarks/explore.py --limit 100    exit with 1 when a median CPU
time is above so many milliseconds
"""

import argparse
import platform
import statistics
import time
from itertools import cycle, islice

import numpy as np

from oodnb.backbones import load_backbone
from oodnb.benchmark import run_benchmark
from oodnb.datasets import load_dataset
from oodnb.detectors import zero_shot
from oodnb.explore import explore_forgetting, explore_images, explore_regions, explore_scores
from oodnb.methods.forget import load_preserve
from oodnb.views.explorer_panels import forget_board
from oodnb.views.one_picture import make_gallery, probe_regions


def thinned(name, step):
    """Every so many-th picture, as on the page of the explorers."""
    images = load_dataset(name)
    return images.subset(np.arange(0, len(images), step))


def explorers():
    """Explorer by name, each with the moves to make: (control, value)."""
    model = load_backbone("mini", device="cpu")
    known, strange = (
        thinned("mini", 4),
        [thinned(name, 4) for name in ("mini-near", "mini-plants", "mini-places", "mini-textures")],
    )
    scores = run_benchmark(
        model,
        known,
        strange,
        zero_shot(model, known.class_names, ("max_logit", "mcm", "energy")),
        progress=False,
    )
    yield (
        "scores",
        explore_scores(scores, [known, *strange]),
        [("accepted", value) for value in (90.0, 85.0, 70.0, 50.0, 97.5)]
        + [("detector", "mcm"), ("order", "near"), ("detector", "energy"), ("order", "worst")],
    )
    pictures = load_dataset("mini")
    probe = probe_regions(model, pictures.read(3), pictures.class_names, mask=pictures.masks(3))
    yield (
        "regions",
        explore_regions(probe),
        [("top_k", k) for k in (5, 30, 50, 80)]
        + [("temperature", t) for t in (0.01, 0.1, 1.0)]
        + [("label", name) for name in pictures.class_names[:3]],
    )
    gallery = make_gallery(model, known, strange, progress=False)
    names = ["penguin", "owl", "duck", "eagle", "chicken", "dog", "cat", "bear"]
    yield (
        "images",
        explore_images(gallery, names),
        [("index", i) for i in (5, 50, 130, 333)]
        + [("accepted", a) for a in (90.0, 80.0)]
        + [("source", "mini-near"), ("source", "mini")],
    )
    yield (
        "images, other names",
        explore_images(gallery, names),
        [("names", ", ".join(known.class_names[k : k + 9])) for k in range(0, 90, 9)],
    )
    animals, others = (
        load_dataset("mini-animals"),
        [load_dataset(f"mini-{name}") for name in ("food", "vehicles", "objects")],
    )
    board = forget_board(model, animals, others, load_preserve("mini-animals"), progress=False)
    yield (
        "forgetting",
        explore_forgetting(board, ["cow"]),
        [("names", (name,)) for name in animals.class_names[:6]]
        + [
            ("preserve_weight", 0.5),
            ("shown", animals.class_names[8]),
            ("forget_weight", 1.5),
            ("shown", ""),
        ],
    )


def times(explorer, moves, count):
    """Milliseconds of `count` moves as (CPU, wall) lists; moves that change nothing are left
    out."""
    cpu, wall = [], []
    for name, value in islice(cycle(moves), count + 2):
        if explorer.controls[name].value == value:
            continue
        start = time.process_time(), time.perf_counter()
        explorer.controls[name].value = value
        cpu.append(1000 * (time.process_time() - start[0]))
        wall.append(1000 * (time.perf_counter() - start[1]))
    return cpu[2:], wall[2:]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moves", type=int, default=30)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--limit", type=float, help="milliseconds of CPU time that no median may exceed"
    )
    options = parser.parse_args()
    worst = 0.0
    print(
        f"{platform.processor() or platform.machine()}, Python "
        f"{platform.python_version()}\n\n"
        f"{'explorer':<22}{'CPU ms':>8}{'90 %':>8}{'wall ms':>9}{'JPEG kB':>9}"
    )
    for name, explorer, moves in explorers():
        cpu, wall = times(explorer, moves, 8 if options.quick else options.moves)
        middle = statistics.median(cpu)
        worst = max(worst, middle)
        print(
            f"{name:<22}{middle:>8.0f}{np.quantile(cpu, 0.9):>8.0f}"
            f"{statistics.median(wall):>9.0f}{len(explorer.picture.value) / 1000:>9.0f}"
        )
    return int(options.limit is not None and worst > options.limit)


if __name__ == "__main__":
    raise SystemExit(main())
