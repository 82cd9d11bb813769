"""The benchmarks of the big pass run at a small size, and streaming keeps few batches in memory
however many there are."""

import importlib
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from oodnb.benchmark import run_benchmark


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield load
    for name in ("benchmark_pass", "imagenet_pass", "features"):
        sys.modules.pop(name, None)


def test_scores_from_cached_features(script, capsys):
    taken, scores = script("benchmark_pass").main(["--rescore", "400"])
    assert (
        len(scores) == 400
        and scores["role"].eq("id").sum() == round(400 * 50_000 / 85_640)
        and taken < 60
    )
    assert (
        np.isfinite(scores[["mcm", "energy", "variance"]].to_numpy()).all()
        and "400 cached features x 1,000 classes" in capsys.readouterr().out
    )


def test_streaming_keeps_few_batches(script):
    """Local features of at most three batches live at once: the one that is scored, the one behind
    it, the one being made."""
    module, alive, most = script("benchmark_pass"), weakref.WeakSet(), []

    class Watched(module.StandIn):
        def encode_images(self, pixels, local=False):
            known, regions = super().encode_images(pixels, local=True)
            alive.add(regions)
            most.append(len(alive))
            return known, regions

    backbone = Watched()
    detectors = module.made_detectors(backbone, ("mcm", "l_mcm", "gl_mcm"))
    run_benchmark(
        backbone,
        module.made_set("id", 20),
        [module.made_set("ood", 20)],
        detectors,
        cache=False,
        batch_size=4,
        progress=False,
    )
    assert len(most) == 10 and max(most) <= 3


def test_shares_of_a_pass_over_jpegs(script, capsys):
    found = script("imagenet_pass").main(["--images", "6", "--backbone", "mini"])
    rate, seconds = found["mini"]
    assert (
        rate > 0
        and all(seconds[stage] > 0 for stage in ("decode", "encode", "score"))
        and seconds["rest"] >= 0
    )
    script("imagenet_pass").main(["--images", "4", "--decode"])
    assert "pictures/s on the wall" in capsys.readouterr().out
