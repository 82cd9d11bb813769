"""What does one training picture cost in a set of a thousand pairs, and in one of three millions?

    python benchmarks/crops.py                      1,000, 100,000 and 3,000,000 pairs
    python benchmarks/crops.py --pairs 1000 20000     other sizes
    python benchmarks/crops.py --side 500             larger JPEGs

A step of CLIPN's pre-training reads 2,048 pictures, each cut anew: 28.9 millions in ten passes over
CC3M. Pairs here are one JPEG made on the spot and short captions; measured are `caption_batches` as
the training uses them (read, cut, resize, normalise, tokenise), after a first step that draws the
order of the epoch. What grows with the set is said apart: the set itself and that first step, once
an epoch.
"""

import argparse
import io
import time

import numpy as np
from PIL import Image

from oodnb.captions import CaptionSettings, caption_batches
from oodnb.data.image_sets import ImageSet
from oodnb.models.backbone import tiny_clip
from oodnb.pictures import open_rgb


def one_jpeg(side):
    """Bytes of a picture whose length in the file is like a photograph's."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(kept, "jpeg")
    return kept.getvalue()


def pairs_of(count, data):
    """That picture, so many times."""
    return ImageSet(
        "pairs",
        "train",
        [f"{i}.jpg" for i in range(count)],
        np.full(count, -1),
        [],
        lambda i: open_rgb(io.BytesIO(data)),
        f"pairs {count}",
        [f"thing number {i}" for i in range(count)],
    )


def cost(count, data, batch, steps):
    """(seconds of the set and the first step, milliseconds per picture of the steps after it)."""
    begun = time.process_time()
    backbone, pairs = tiny_clip("vit_a", device="cpu"), pairs_of(count, data)
    source = caption_batches(backbone, pairs, CaptionSettings(batch_size=batch))()
    next(source)
    first = time.process_time() - begun
    taken = []
    for _ in range(steps):
        begun = time.process_time()
        next(source)
        taken.append(1000 * (time.process_time() - begun) / batch)
    return first, float(np.median(taken))


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000, 100_000, 3_000_000])
    parser.add_argument("--batch", type=int, default=128, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--side", type=int, default=256, help="of the JPEG, in pixels")
    options = parser.parse_args(arguments)
    data = one_jpeg(options.side)
    print(f"{'pairs':>10}{'ms a picture':>14}{'s before them':>15}")
    found = {}
    for count in options.pairs:
        first, found[count] = cost(count, data, options.batch, options.steps)
        print(f"{count:>10,}{found[count]:>14.2f}{first:>15.1f}")
    return found


if __name__ == "__main__":
    main()
