"""The benchmark of learned prompts runs, finds equal numbers, and finds the packed step cheaper."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.parametrize("more", [[], ["--at-once", "9"]], ids=["at once", "in parts"])
def test_small(more, capsys):
    spec = importlib.util.spec_from_file_location("prompts_benchmark", Path(__file__).parents[1] / "benchmarks" / "prompts.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    result, = benchmark.main(["--small", "--images", "--ensemble", "--device", "cpu", "--repeats", "1", *more])
    assert result["error"] < 1e-4 and result["faster"] > 2 and result["kept"] > 8
    printed = capsys.readouterr().out
    assert "24 classes" in printed and "view bank" in printed and "7 templates" in printed and ("*" in printed) == bool(more)
