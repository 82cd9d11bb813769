"""A backbone and a data set small enough for tests, without the heavy imports of the real ones: two
processes start in a second each."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image


def to_tensor(picture):
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255


class Eye:
    """Pictures of 8 x 8 pixels, four regions, three random directions; slow on demand, counts what
    it has seen."""

    name, precision, device, embed_dim, grid, fingerprint = "eye", "fp32", "cpu", 3, (2, 2), "eye-0"

    def __init__(self, pause=0.0):
        self.preprocess, self.pause, self.seen = to_tensor, pause, 0
        self.weights = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))

    def encode_images(self, pixels, local=False):
        time.sleep(self.pause)
        self.seen += len(pixels)
        regions = (
            pixels.unfold(2, 4, 4)
            .unfold(3, 4, 4)
            .permute(0, 2, 3, 1, 4, 5)
            .reshape(len(pixels), 4, 48)
            @ self.weights
        )
        return (regions.sum(1), regions) if local else regions.sum(1)


class Squares(SimpleNamespace):
    """The attributes of an ImageSet."""

    def __init__(self, count=50, broken=(), name="squares"):
        def read(i):
            if i in broken:
                raise OSError(f"disk error at {i}")
            return Image.fromarray(
                np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            )

        super().__init__(
            name=name,
            split="test",
            ids=[f"{i:03d}.png" for i in range(count)],
            labels=np.arange(count) % 5,
            class_names=list("abcde"),
            read=read,
            fingerprint=f"squares-{count}",
        )

    def __len__(self):
        return len(self.ids)


if __name__ == "__main__":
    from oodnb.features import extract

    eye = Eye(pause=float(sys.argv[2]))
    extract(eye, Squares(), sys.argv[1], batch_size=4, chunk=8, progress=False, local=True)
    print(eye.seen)
