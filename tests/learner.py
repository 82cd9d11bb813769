"""A few-shot training of a second, in this process or in one that waits in the middle of an epoch
until a test kills it."""

import sys
import time
from dataclasses import fields

import numpy as np
from PIL import Image

from oodnb.backbones import tiny_clip
from oodnb.datasets import ImageSet
from oodnb.methods.coop import CoOpSettings
from oodnb.methods.locoop import LoCoOpSettings, fit_locoop

NAMES = ["bright", "dark", "grey", "striped", "dotted"]


def drawn(i):
    picture = np.random.default_rng(i).integers(60, 200, (40, 48, 3), dtype=np.uint8)
    picture[8:32, 8:32] = 50 * (i % 5)
    return Image.fromarray(picture)


def squares(count=20, broken=()):
    def read(i):
        if i in broken:
            raise OSError(f"disk error at {i}")
        return drawn(i)

    return ImageSet(
        "squares",
        "train",
        [f"{i:02d}.png" for i in range(count)],
        np.arange(count) % 5,
        NAMES,
        read,
        f"squares-{count}",
    )


def learn(fit=fit_locoop, pictures=None, config="vit_a", precision="fp32", **options):
    options = dict(epochs=4, length=3, batch_size=5, lr=0.05, progress=False, workers=1) | options
    kind = LoCoOpSettings if fit is fit_locoop else CoOpSettings
    own = {f.name: options.pop(f.name) for f in fields(kind) if f.name in options}
    return fit(
        tiny_clip(config, device="cpu", precision=precision),
        squares() if pictures is None else pictures,
        kind(**own),
        **options,
    )


if __name__ == "__main__":

    def until(step):
        if (step["epoch"], step["step"]) == (int(sys.argv[2]), 1):
            print("in the middle of it", flush=True)
            time.sleep(600)

    learn(folder=sys.argv[1], watch=until)
