"""What must hold where a method meets the full size of its data: costs per picture, names that are
checked before long work, parts that are asked for alone."""

import importlib
from pathlib import Path

import torch
from clipn_job import little_pairs

from oodnb.captions import CaptionSettings, caption_batches
from oodnb.data.image_sets import ImageSet
from oodnb.models.backbone import tiny_clip


def test_a_crop_costs_the_same_in_any_set(monkeypatch):
    "No step walks over the set: neither a set nor a list of all ids is made for one picture."
    backbone, pairs = tiny_clip("vit_a", device="cpu"), little_pairs(40)
    source = caption_batches(backbone, pairs, CaptionSettings(batch_size=8), seed=1)()
    next(source)

    def made(images):
        raise AssertionError(f"a set of {len(images)} pictures was made inside a step")

    monkeypatch.setattr(ImageSet, "__post_init__", made)
    batch = next(source)
    assert batch.pixels.shape == (8, 3, 32, 32) and torch.isfinite(batch.pixels).all()


def test_benchmark_of_crops(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    small = ["--batch", "8", "--steps", "3", "--side", "32"]
    found = importlib.import_module("crops").main(["--pairs", "100", "100000", *small])
    assert found[100_000] < 3 * found[100] and "pairs" in capsys.readouterr().out
