"""The maps of the papers: every numbered equation, table and figure leads to something that is
there, or says why it is not reproduced."""

import csv
import importlib
import json
from pathlib import Path

import pytest

import oodnb

ROOT = Path(oodnb.__file__).parents[1]
MAPS = sorted((ROOT / "data" / "maps").glob("*.csv"))
COLUMNS = ["item", "what", "functions", "cases", "notebooks", "rows", "why_not", "basis"]


def read(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


ENTRIES = [
    pytest.param(row, id=f"{file.stem}: {row['item']}") for file in MAPS for row in read(file)
]


def tables(folder):
    """{paper/table: files} of the rows that are there."""
    found = {}
    for file in sorted((ROOT / "data" / folder).glob("*.csv")):
        for row in read(file):
            found.setdefault(f"{row['paper']}/{row['table']}", set()).add(file.stem)
    return found


REPRODUCED, PUBLISHED = tables("reproduced"), tables("published")


def dead_ends(row):
    """What an entry names and what is not there."""
    for name in row["functions"].split():
        module, _, attribute = name.rpartition(".")
        try:
            there = hasattr(importlib.import_module(module), attribute)
        except ImportError:
            there = False
        if not there:
            yield name
    yield from (c for c in row["cases"].split() if not (ROOT / "data/reference" / c).is_file())
    for stem in row["notebooks"].split():
        if not (ROOT / "nbs" / "papers" / f"{stem}.ipynb").is_file():
            yield stem
    for table in row["rows"].split():
        made = REPRODUCED.get(table, set()) & set(row["notebooks"].split())
        if not (made or table in PUBLISHED):
            yield table


def test_there_is_a_map_of_every_paper():
    names = {file.stem for file in MAPS}
    assert names == {"clipn", "forget", "hftt", "locoop", "toe"}
    for file in MAPS:
        rows = read(file)
        assert all(list(row) == COLUMNS for row in rows)
        assert len({row["item"] for row in rows}) == len(rows) > 10


@pytest.mark.parametrize("row", ENTRIES)
def test_an_entry_leads_somewhere_or_says_why_not(row):
    assert list(dead_ends(row)) == []
    assert row["item"] and row["what"]
    assert row["notebooks"] or row["functions"] or row["why_not"].startswith("not reproduced")


def test_a_dead_entry_is_found():
    row = dict.fromkeys(COLUMNS, "") | {
        "functions": "oodnb.scores.mcm oodnb.scores.mmc oodnb.scorse.mcm",
        "cases": "hftt/none.npz",
        "notebooks": "zeroshot_imagenet zeroshot_nothing",
        "rows": "locoop/imagenet_main hftt/nothing",
    }
    dead = ["oodnb.scores.mmc", "oodnb.scorse.mcm", "hftt/none.npz", "zeroshot_nothing"]
    assert list(dead_ends(row)) == [*dead, "hftt/nothing"]


@pytest.mark.parametrize("paper", ["clipn", "forget", "hftt", "locoop", "toe"])
def test_every_notebook_of_a_paper_stands_in_its_map(paper):
    """What is made for a paper and stands in no map would be found by nobody."""
    rows = read(ROOT / "data" / "maps" / f"{paper}.csv")
    named = {stem for row in rows for stem in row["notebooks"].split()}
    own = {file.stem for file in (ROOT / "nbs" / "papers").glob(f"{paper}_*.ipynb")}
    beside = {"forget_attacks", "forget_meets_ood"}  # experiments of ours, in no paper
    assert own - named <= beside


def test_every_published_table_with_results_stands_in_a_map():
    words = json.loads((ROOT / "data/published/vocabulary.json").read_text("utf-8"))["metrics"]
    mapped = {t for row in ENTRIES for t in row.values[0]["rows"].split()}
    found = set()
    for file in (ROOT / "data" / "published").glob("*.csv"):
        for row in read(file):
            detection = words[row["metric"]]["unit"] == "percent"
            if detection and row["paper"] in {f.stem for f in MAPS}:
                found.add(f"{row['paper']}/{row['table']}")
    assert found - mapped <= {"clipn/abstract", "clipn/imagenet_quoted"}, found - mapped
