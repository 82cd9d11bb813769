"""The numbers of short runs are those that were accepted: nothing that decides one changes unseen.

`nbdev-test` has run every paper notebook in its short form before; their rows lie in
runs/interactive. Rows that are older than the code, or missing, are made here, which takes up to a
minute each. To accept other numbers, on purpose:

    OODNB_ACCEPT_SHORT=1 python -m pytest tests/test_short_rows.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oodnb.running.one_run import _compare, _numbers

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "tests" / "short_rows"
# zero-shot scores, the detectors beside the papers, and something of every paper
NAMES = (
    "zeroshot_imagenet",
    "more_detectors",
    "locoop_imagenet",
    "clipn_readme",
    "toe_imagenet",
    "hftt_imagenet",
    "forget_single",
)


def _newest_source():
    kinds = ("oodnb/**/*.py", "nbs/papers/*.ipynb", "data/lists/*", "data/mini/*")
    return max(path.stat().st_mtime for kind in kinds for path in ROOT.glob(kind))


def _short_rows(name):
    "rows.csv of the short form, made now when what lies there is older than the code."
    rows = ROOT / "runs" / "interactive" / name / "rows.csv"
    if not rows.is_file() or rows.stat().st_mtime < _newest_source():
        command = [Path(sys.executable).with_name("nbdev-test"), f"nbs/papers/{name}.ipynb"]
        own = {"MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_short_rows_are_the_accepted_ones(name):
    rows, accepted = _short_rows(name), ACCEPTED / f"{name}.csv"
    if os.environ.get("OODNB_ACCEPT_SHORT"):
        ACCEPTED.mkdir(exist_ok=True)
        shutil.copyfile(rows, accepted)
    own, known = _numbers(rows), _numbers(accepted)
    assert len(known) > 5
    found = _compare(own, known)
    assert not found.different, str(found)


def test_a_changed_number_is_seen():
    known = _numbers(ACCEPTED / "zeroshot_imagenet.csv")
    key = next(k for k, (metric, *_) in known.items() if metric == "auroc")
    metric, value, spread = known[key]
    found = _compare(known | {key: (metric, value + 0.2, spread)}, known)
    assert len(found.different) == 1
