"""The benchmark of learned prompts runs, finds equal numbers, and finds the packed step cheaper."""

import pytest
from scripts import load


@pytest.fixture(scope="module")
def benchmark():
    return load("benchmarks", "prompts")


@pytest.mark.parametrize("more", [[], ["--at-once", "9"]], ids=["at once", "in parts"])
def test_small(more, benchmark, capsys):
    (result,) = benchmark.main(
        ["--small", "--images", "--ensemble", "--device", "cpu", "--repeats", "1", *more]
    )
    assert result["error"] < 1e-4 and result["faster"] > 2 and result["kept"] > 8
    printed = capsys.readouterr().out
    assert (
        "24 classes" in printed
        and "view bank" in printed
        and "7 templates" in printed
        and ("*" in printed) == bool(more)
    )


def test_half_precision_learns_the_same(benchmark, capsys):
    result = benchmark.main(
        [
            "--mini",
            "--shots",
            "1",
            "--epochs",
            "2",
            "--seeds",
            "1",
            "--every",
            "20",
            "--device",
            "cpu",
        ]
    )
    assert result["cosine"] > 0.95 and abs(result["difference"]) < 2
    assert "times as fast" in capsys.readouterr().out
