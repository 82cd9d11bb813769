"""What must hold where a method meets the full size of its data: costs per picture, names that are
checked before long work, parts that are asked for alone."""

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from clipn_job import little_pairs

from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from reference import close
from safetensors import safe_open

from oodnb.captions import CaptionSettings, caption_batches
from oodnb.clipn.train import main as train_clipn
from oodnb.data.image_sets import ImageSet
from oodnb.models.backbone import tiny_clip
from oodnb.toe.outlier_lists import LEVELS, toe_plan
from oodnb.toe.outlier_texts import descriptor_keys, ready_texts


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


class Trap:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_ready_list_is_never_run(tmp_path):
    texts = np.array(["a sky", Trap(tmp_path / "ran")], dtype=object)
    np.save(tmp_path / "trap.npy", texts, allow_pickle=True)
    with pytest.raises(ValueError, match="hold[s]? Python objects that are no texts"):
        ready_texts(tmp_path / "trap.npy", "word")
    assert not (tmp_path / "ran").exists()
    many = [f"caption {i % 1500} of a picture" for i in range(4000)]  # repeated ones are memoised
    for protocol in (2, 4):
        with open(tmp_path / "many.npy", "wb") as file:
            header = {"descr": "|O", "fortran_order": False, "shape": (4000,)}
            np.lib.format.write_array_header_1_0(file, header)
            pickle.dump(np.array(many, dtype=object), file, protocol=protocol)
        assert list(ready_texts(tmp_path / "many.npy", "caption").texts) == many


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_of_toe_needs_its_own_parts_only(level):
    needs = set(toe_plan("paper", levels=[level], ood=["SUN"])["needs"])
    own = {
        "word": {"reader", "decoder"},
        "description": {"descriptors"},
        "caption": {"reader", "captioner"},
    }
    assert needs == own[level] | {"model", "training pictures", "ImageNet", "SUN"}
    ready = toe_plan("paper", levels=[level], ready={level: "list.npy"}, ood=["SUN"])["needs"]
    assert set(ready) == {"model", "training pictures", "ImageNet", "SUN", f"ready {level}"}


def test_wrong_keys_of_descriptors_are_all_named():
    names = {name: ["small"] for name in IMAGENET_CLASSNAMES}
    keys = descriptor_keys("ImageNet20", names)
    assert keys[0] == "smooth newt" and len(set(keys)) == 20 and set(keys) <= set(names)
    for name in ("grey wolf", "high-speed train"):
        del names[name]
    with pytest.raises(ValueError, match=r"2 of 20 classes.*n02114367.*n02917067"):
        descriptor_keys("ImageNet20", names)


PAPERS = sorted((Path(__file__).parents[1] / "nbs" / "papers").glob("*.ipynb"))
METHODS = [
    p for p in PAPERS if p.stem.split("_")[0] in ("locoop", "hftt", "clipn", "toe", "forget")
]
WRITES = re.compile(
    r"write_rows\(|write_seed_tables\(|\.to_csv\(|save_scores\(|save_texts\(|written\(table\)"
)
DRAWS = re.compile(r"save_figure\(|\bplot_\w+\(|DataFigure\(|compare_with_published\(")


def code_cells(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_rows_come_before_figures(path):
    "What was computed is on disk before anything is drawn or laid beside published numbers."
    cells = [re.sub(r"(?m)^(from|import) .*\n(?:    .*\n|\)\n)*", "", c) for c in code_cells(path)]
    writes = [i for i, cell in enumerate(cells) if WRITES.search(cell)]
    draws = [i for i, cell in enumerate(cells) if DRAWS.search(cell)]
    assert writes or path.stem == "hftt_theory"
    assert not draws or max(writes) < min(draws), (max(writes), min(draws))


def test_a_figure_that_fails_loses_nothing(tmp_path, monkeypatch):
    """Two OOD sets and one level, and an error planted in the first figure: rows, intervals and
    differences are there, of what was asked for and nothing else."""

    def planted(*_, **__):
        raise RuntimeError("no disk for pictures")

    figures = importlib.import_module("oodnb.evidence.figures")
    monkeypatch.setattr(figures, "save_figure", planted)
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("builtins.display", lambda *shown: None, raising=False)
    given = dict(rehearse=True, seeds=[1, 2], epochs=1, n_boot=20, out=str(tmp_path / "run"))
    given |= dict(levels=["description"], sets=["mini-near", "mini-scenes"], device="cpu")
    path = next(p for p in METHODS if p.stem == "toe_imagenet")
    parameters, *cells = code_cells(path)
    space = {"__name__": "notebook"}
    exec(parameters, space)
    space |= given
    with pytest.raises(RuntimeError, match="no disk for pictures"):
        for cell in cells:
            exec(cell, space)
    rows = pd.read_csv(tmp_path / "run" / "rows.csv")
    asked = {"mini-near", "mini-scenes", "mean"}
    assert asked <= set(rows["dataset"]) <= asked | {"mini", "far"}
    assert set(rows["method"]) >= {"mcm", "toe_none", "toe_description"}
    for file in ("metrics", "differences", "forecast", "counts"):
        assert len(pd.read_csv(tmp_path / "run" / f"{file}.csv")), file
