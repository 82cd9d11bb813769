"""A CLIPN training small enough for two processes on a CPU: `python -m torch.distributed.run
--nproc-per-node 2 clipn_job.py OUT FOLDER STOP`."""

import json
import sys
import warnings
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from oodnb.backbones import tiny_clip
from oodnb.datasets import ImageSet
from oodnb.clipn.no_branch import NoBranch
from oodnb.clipn.pretrain import CLIPNSettings, pretrain_on_captions
from oodnb.pipeline.processes import process_group, rank_and_ranks

WORDS = "red green blue black white small large old round flat".split()
SETTINGS = CLIPNSettings(prompts=3, batch_size=8, epochs=2, lr=1e-3, warmup=2, clip=0.5, views=2)
RUN = {"seed": 3, "cache": False, "progress": False}


def little_pairs(count=22, broken=()):
    """Pictures of noise with captions of different lengths."""

    def read(i):
        if i in broken:
            raise OSError("disk error")
        return Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        )

    captions = [
        " ".join([WORDS[i % 10], WORDS[i // 10 % 10], *["thing"] * (i % 5)]) for i in range(count)
    ]
    return ImageSet(
        "pairs",
        "train",
        [f"{i}.png" for i in range(count)],
        [-1] * count,
        [],
        read,
        f"pairs-{broken}",
        captions,
    )


def begun(dtype=torch.float64, apart=0.0):
    """(backbone, branch) before the first step; `apart` from the yes tower, in standard deviations
    of each tensor."""
    backbone, draw = tiny_clip("vit_a", device="cpu"), torch.Generator().manual_seed(0)
    branch = NoBranch(backbone, 3)
    with torch.no_grad():
        for p in branch.parameters():
            p.add_(apart * (p.std() or 0.1) * torch.randn(p.shape, generator=draw))
    return backbone, branch.to(dtype)


def learn(folder=None, pairs=None, stop_after=None, dtype=torch.float64, apart=0.0, **changes):
    """(branch, history) of a short training."""
    backbone, branch = begun(dtype, apart)
    run = RUN | {"folder": folder, "stop_after": stop_after}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = pretrain_on_captions(
            backbone, branch, pairs or little_pairs(), replace(SETTINGS, **changes), **run
        )
    return branch, history


if __name__ == "__main__":
    out, folder, options = sys.argv[1], sys.argv[2] or None, json.loads(sys.argv[3])
    torch.set_num_threads(1)
    with process_group("cpu"):
        branch, history = learn(folder, **options)
        rank, ranks = rank_and_ranks()
        save_file(
            {name: tensor.detach().clone() for name, tensor in branch.named_parameters()},
            f"{out}/{rank}-of-{ranks}.safetensors",
            {"history": json.dumps(history)},
        )
