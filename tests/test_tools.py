"""The tools for a release: the matrix of versions and the soak, as far as they need no time."""

import importlib
import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    return importlib.import_module


def test_the_matrix_takes_the_first_allowed_versions_and_pythons_that_are_what_they_say(tool):
    matrix = tool("matrix")
    wanted = ["torch>=2.6", "open_clip_torch>=3.3,<4", "bleach[css]>=6.1", "pip"]
    found = list(map(matrix.lowest, wanted))
    assert found == ["torch==2.6.*", "open_clip_torch==3.3.*", "bleach[css]==6.1.*", "pip"]
    assert any(r.startswith("pytest>=") for r in matrix.requirements())
    here = ".".join(map(str, sys.version_info[:2]))
    assert list(matrix.pythons([here, "2.0"])) == [here]


def test_the_soak_finds_a_planted_fault_and_repeats_it(tool, monkeypatch, tmp_path):
    soak = tool("soak")
    assert soak.play("hostile", 3) is None
    monkeypatch.setattr(soak.archives, "outcome", lambda data, folder, name: "other")
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    said = soak.play("hostile", 3)
    assert "unpacks to other files" in said and soak.play("hostile", 3) == said
    soak.keep({"scene": "hostile", "seed": 3, "found": said})
    assert json.loads((tmp_path / "runs/soak/hostile-3.json").read_text())["seed"] == 3
