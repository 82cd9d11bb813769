"""The tutorials: what "add a method" promises holds for the very cells it shows, and every page
says where to go next."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from test_house import ROOT, cell, check, nbdev, write

PAGES = sorted((ROOT / "nbs" / "tutorials").glob("[0-9]*_*.ipynb"))
IMPORTS = """from dataclasses import dataclass

import torch

from oodnb.detectors import check_features
from oodnb.prompts import zero_shot_classifier
from oodnb.scores import cosine_sims, normalize"""
USE = """import numpy as np, torch
from oodnb.benchmark import score_table
from oodnb.detectors import Detector
from oodnb.features import Features
from oodnb.methods.blank import BlankDetector
from oodnb.results import metrics_table
unit = torch.eye(4)
detector = BlankDetector("blank", unit[:2], unit[3:], 10.0)
def features(rows):
    ids = [str(i) for i in range(len(rows))]
    return Features(rows, np.zeros(len(rows), np.int64), ids, "made", "", "")
assert isinstance(detector, Detector)
known, strange = detector.score(features(unit[:2])), detector.score(features(unit[2:]))
assert known.tolist() == [10., 10.] and strange.tolist() == [0., -10.]
table = metrics_table(score_table({"blank": known}, {"strange": {"blank": strange}}), n_boot=0)
print("AUROC", table["auroc"].iloc[0])"""


def cells(page):
    return [
        (c["cell_type"], "".join(c["source"])) for c in json.loads(page.read_text("utf-8"))["cells"]
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_has_a_title_and_ends_with_where_next(page):
    (_, first), (kind, last) = cells(page)[0], cells(page)[-1]
    assert re.match(r"# .+\n\n> .+", first)
    assert kind == "markdown" and last.startswith("## Where next")
    assert re.findall(r"^- \*\*(.+?)\*\*", last, re.M) == ["Try", "Read on", "Behind this page"]


def test_the_cells_of_add_a_method_become_a_module(tmp_path):
    """One notebook in a chapter, an export, and nothing else: the module is there, keeps the rules,
    and its detector works downstream."""
    page = next(p for p in PAGES if p.stem == "5_add_a_method")
    wanted = [
        source
        for kind, source in cells(page)
        if kind == "code"
        and re.search(r"^(def against_blank|class BlankDetector|def fit_blank)", source, re.M)
    ]
    assert len(wanted) == 3
    for name in ("settings.ini", "pyproject.toml", "nbs", "oodnb"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    modules = lambda: {
        p.relative_to(tmp_path / "oodnb").as_posix() for p in (tmp_path / "oodnb").rglob("*.py")
    }
    before = modules()
    own = tmp_path / "nbs/11_more/97_blank.ipynb"
    write(
        own,
        "#| default_exp methods.blank",
        cell(1, "# methods.blank\n\n> Against sentences that say nothing.", "markdown"),
        f"#| export\n{IMPORTS}",
        *(f"#| export\n{source}" for source in wanted),
    )
    nbdev("export", tmp_path)
    assert modules() == before | {"methods/blank.py"}
    notebooks, unreadable = check.read_notebooks(tmp_path)
    assert not unreadable and not [
        line
        for rule in (check.check_numbers, check.check_imports, check.check_cells)
        for line in rule(notebooks)
        if "97_blank" in line
    ]
    done = subprocess.run(
        [sys.executable, "-c", USE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "AUROC 100.0"
