"""What must hold where a method meets the full size of its data: costs per picture, names that are
checked before long work, parts that are asked for alone."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clipn_job import little_pairs

from reference import close
from safetensors import safe_open

from oodnb.captions import CaptionSettings, caption_batches
from oodnb.clipn.train import main as train_clipn
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


@pytest.fixture
def pairs_on_disk(tmp_path):
    """A table of twelve pictures with captions."""
    pairs, lines = little_pairs(12), ["filepath\ttitle"]
    for i, caption in enumerate(pairs.captions):
        pairs.read(i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png\t{caption}")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    return tmp_path / "pairs.tsv"


def kept_branch(home):
    (path,) = Path(home, "branches").glob("*.safetensors")
    with safe_open(path, "pt") as file:
        return path.name, {name: file.get_tensor(name) for name in file.keys()}


def test_torchrun_makes_the_branch_that_one_process_makes(pairs_on_disk, tmp_path, monkeypatch):
    """The command at scale paper, each picture cut anew: same file name, and the same steps but for
    rounding, since both read the same pairs in the same order."""
    few = ["--captions", str(pairs_on_disk), "--backbone", "tiny-vit", "--device", "cpu"]
    few += ["--seeds", "3", "--pairs", "4", "--epochs", "1", "--workers", "0"]
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "one"))
    history = train_clipn(few)[3].history
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *run, "-m", "oodnb.clipn.train", *few],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OODNB_HOME": str(tmp_path / "two")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (one, first), (two, second) = kept_branch(tmp_path / "one"), kept_branch(tmp_path / "two")
    assert one == two and first.keys() == second.keys() and len(history) == 3
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "two"))
    again = train_clipn(few)[3].history  # found, not trained
    close([row["loss"] for row in again], [row["loss"] for row in history], rtol=1e-3)
    moved = torch.cat([(first[name] - second[name]).double().flatten() for name in first])
    assert float(moved.abs().mean()) < 1e-4 and moved.isfinite().all()
