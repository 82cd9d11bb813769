"""The faults that `make mutate` plants still fit the code, and planting one is seen."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # forks of the runner import it by its name, too
import mutate  # noqa: E402

FAULTS = mutate.mutations()


def test_there_are_sixty_or_more_and_each_has_a_name_of_its_own():
    names = [one["id"] for one in FAULTS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("fault", FAULTS, ids=[one["id"] for one in FAULTS])
def test_a_fault_stands_once_in_the_module_and_once_in_its_notebook(fault):
    assert mutate.places(fault) == (1, 1)
    assert fault["old"] != fault["new"]
    for target in fault["tests"]:
        assert (ROOT / target.split("::")[0]).is_file(), target


def test_a_fault_is_planted_noticed_and_taken_back(tmp_path):
    fault = {
        "id": "hint",
        "module": "ground/spelling",
        "old": "cutoff=0.6",
        "new": "cutoff=1.0",
        "tests": [],
    }
    bench = mutate.Bench(tmp_path, 1)
    project = bench.free.queue[0]
    before = (project.root / "oodnb/ground/spelling.py").read_bytes()
    _, noticed, _ = bench.tried(fault)
    assert noticed == "nbs/0_ground/04_spelling.ipynb"
    assert (project.root / "oodnb/ground/spelling.py").read_bytes() == before


def test_what_changes_nothing_survives(tmp_path):
    fault = {
        "id": "nothing",
        "module": "ground/spelling",
        "old": "n=3, cutoff=0.6",
        "new": "n=3, cutoff=0.600001",
        "tests": [],
    }
    _, noticed, _ = mutate.Bench(tmp_path, 1).tried(fault)
    assert noticed is None
