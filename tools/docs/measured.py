"""What the benchmarks wrote below benchmarks/measured, as a page."""

import csv
import json
import statistics

INTRO = """# Benchmarks

Ratios of two ways of doing one thing, taken in turns in one run, with the quartiles of the turns
behind them; above 1 the first way is faster. Seconds are medians, of processor time on a CPU.
`make benchmark` runs small variants; the scripts and what they compare are in `benchmarks/`.
"""


def _cells(*texts):
    return "| " + " | ".join(str(text).replace("|", "\\|") for text in texts) + " |"


def _about(facts):
    where = facts.get("gpu") or f"{facts['machine']}, {facts['threads']} threads"
    return f"{where}; torch {facts['torch']}; commit {facts['commit']}; {facts['day']}"


def _ratios(pairs):
    yield _cells("what", "first", "second", "ratio", "quartiles")
    yield _cells(*["---"] * 5)
    for pair in pairs:
        sides = zip(pair["labels"], (pair["ours"], pair["theirs"]))
        times = [f"{label} {statistics.median(seconds):.3g} s" for label, seconds in sides]
        spread = f"{pair['low']:.2f} to {pair['high']:.2f}"
        yield _cells(pair["name"], *times, f"{pair['ratio']:.2f}", spread)


def _one_result(path):
    result = json.loads(path.read_text("utf-8"))
    yield from (f"## {result['benchmark']}", "", _about(result["about"]), "")
    yield from _ratios(result["pairs"])
    yield ""
    for value in result["values"]:
        number = value["value"]
        told = "not measured" if number is None else f"{number:.3g} {value['unit']}".strip()
        yield f"- {value['name']}: {told}"
    yield ""


def _one_card(path):
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    yield from (f"## {rows[0]['card'] if rows else path.stem}", "")
    yield _cells("part", "what", "measured", "limit", "goal", "how")
    yield _cells(*["---"] * 6)
    for row in rows:
        value = f"{row['value']} {row['unit']}" if row["value"] != "not measured" else row["value"]
        yield _cells(row["part"], row["name"], value, row["limit"], row["goal"], row["how"])
    yield ""


def measured_as_markdown(root):
    """The page, from what lies there; None where nothing does."""
    folder, lines = root / "benchmarks" / "measured", [INTRO]
    for path in sorted(folder.glob("*.json")):
        lines += _one_result(path)
    cards = sorted(folder.glob("gpu_*.csv"))
    for path in cards:
        lines += _one_card(path)
    if len(lines) == 1:
        return None
    if not cards:
        lines += ["## On a card", "", "Not measured; `python benchmarks/gpu.py` measures it."]
    return "\n".join(lines) + "\n"
