"""The benchmarks run at a small size, and what they write can be read."""

import csv
import json
from pathlib import Path

import pytest
from scripts import load


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return lambda name: load("benchmarks", name)


def test_the_harness_takes_turns(bench, tmp_path, capsys):
    harness, turns = bench("harness"), []
    burn = lambda name, n: turns.append(name) or sum(i * i for i in range(n))
    ours, theirs = (lambda: burn("a", 20_000)), (lambda: burn("b", 200_000))
    pair = harness.compare("sums", ours, theirs, 4)
    assert "".join(turns) == "ab" * 5 and len(pair["ours"]) == 4
    assert pair["low"] <= pair["ratio"] <= pair["high"] and 3 < pair["ratio"] < 30
    values = [harness.value("size", 3.5, "MB"), harness.value("on a card", None, "s")]
    result = harness.report("own", [pair], values, path=tmp_path / "new" / "own.json")
    assert json.loads((tmp_path / "new" / "own.json").read_text()) == result
    printed = capsys.readouterr().out
    assert "sums" in printed and "3.5 MB" in printed and "not measured" in printed
    assert {"machine", "threads", "torch", "commit", "day"} <= set(result["about"])


def test_ratios_are_of_neighbours(bench):
    pair = bench("harness").pair("x", [1.0, 2.0, 4.0], [2.0, 4.0, 4.0])
    assert pair["ratio"] == 2.0 and pair["low"] == 1.0


def test_plain_user(bench, capsys):
    result = bench("plain_user").main(["--small", "--repeats", "2"])
    names = [pair["name"] for pair in result["pairs"]]
    assert names[:4] == ["decode", "encode", "score (100 times)", "whole, after the start"]
    assert result["values"][0]["value"] < 1e-6
    ratios = dict(zip(names, (pair["ratio"] for pair in result["pairs"])))
    assert ratios["decode"] > 0.7 and ratios["encode"] > 0.7


def test_tokens(bench, capsys):
    pytest.importorskip("tokenizers")
    result = bench("tokens").main(["--small", "--repeats", "1"])
    assert [pair["name"] for pair in result["pairs"]] == ["3,000 words", "3,000 sentences"]


def test_the_gpu_script_is_rehearsed(bench, tmp_path, capsys):
    path = tmp_path / "gpu.csv"
    bench("gpu").main(["--device", "cpu", "--tiny", "--csv", str(path)])
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["value"] for row in rows} == {"not measured"}
    untouched = [row for row in rows if not row["how"].startswith("rehearsed")]
    assert {row["part"] for row in untouched} == {"tower"} and len(untouched) == 12 * 6 - 2
    found = {row["name"]: row["how"] for row in rows}
    assert ": 0 (" in found["fast tokens against open_clip's"]


def test_no_row_is_begun_after_the_end(bench, tmp_path):
    sheet = bench("gpu").Sheet(minutes=0)
    sheet.plan("part", "late", "s")
    sheet.fill("late", lambda: 1 / 0)
    assert sheet.rows[0]["value"] == "not measured" and sheet.rows[0]["how"] == "the time was up"


def test_the_site_shows_what_was_measured(bench, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools" / "docs"))
    page = load("tools/docs", "measured")
    assert page.measured_as_markdown(tmp_path) is None
    folder = tmp_path / "benchmarks" / "measured"
    harness, gpu = bench("harness"), bench("gpu")
    pairs = [harness.pair("a | b", [2.0, 2.0, 2.0], [3.0, 3.0, 5.0], ("new", "old"))]
    values = [harness.value("waits", None, "")]
    harness.report("own", pairs, values, path=folder / "own.json")
    shown = page.measured_as_markdown(tmp_path)
    assert "| a \\| b | new 2 s | old 3 s | 1.50 | 1.50 to 2.50 |" in shown
    assert "- waits: not measured" in shown and "benchmarks/gpu.py" in shown
    sheet = gpu.Sheet(minutes=1)
    sheet.plan("training", "steps", "s", 26, 75)
    sheet.fill("steps", lambda: (41.5, "ten steps"))
    sheet.write(folder / "gpu_some_card.csv", {"card": "some card"})
    shown = page.measured_as_markdown(tmp_path)
    assert "| training | steps | 41.5 s | 26 | 75 | ten steps |" in shown
    assert "## On a card" not in shown


def test_operations_of_a_step(bench, capsys):
    "Only keys and values, once a layer, and the learned words are added up on the way back."
    found = {v["name"]: v["value"] for v in bench("operations").main(["--small"])["values"]}
    layers = 3
    assert found["of them embedding_dense_backward"] == layers + 1
    assert found["operations"] > found["operations that are no views"] > 100
