"""The maps of the papers as pages: every numbered equation, table and figure, what computes it,
what it was compared with, where it is made, and what is not reproduced, and why."""

import csv

TITLES = {
    "clipn": "CLIPN",
    "forget": "Class forgetting",
    "hftt": "HFTT",
    "locoop": "LoCoOp",
    "toe": "TOE",
}
INTRODUCTION = (
    "Where everything that the paper numbers stands in this project. *Compared with* are reference "
    "cases below `data/reference`; *accepted* are rows below `data/reproduced`. The last column "
    "says how we know of an entry, and what is not here. `tests/test_maps.py` follows every way."
)


def read_map(path):
    """Entries of one paper, as dictionaries."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _cell(text):
    return text.replace("|", "\\|")


def _line(row, accepted):
    functions = "<br>".join(f"`{name.removeprefix('oodnb.')}`" for name in row["functions"].split())
    cases = "<br>".join(f"`{name}`" for name in row["cases"].split())
    stems = row["notebooks"].split()
    notebooks = "<br>".join(f"[{stem}](../../nbs/papers/{stem}.ipynb)" for stem in stems)
    rows = "<br>".join(f"[{s}.csv](../reproduced/{s}.csv)" for s in stems if s in accepted)
    remark = "; ".join(filter(None, (row["why_not"], row["basis"])))
    cells = (row["item"], row["what"], functions, cases, notebooks, rows, remark)
    return f"| {' | '.join(map(_cell, cells))} |"


def map_as_markdown(root, source):
    """A page for the map in the file `source` below the project."""
    path = root / source
    accepted = {file.stem for file in (root / "data" / "reproduced").glob("*.csv")}
    rows = read_map(path)
    open_ends = sum(row["why_not"].startswith("not reproduced") for row in rows)
    head = ["", "what it is", "function", "compared with", "notebook", "accepted", "remark"]
    lines = [
        f"# Map of the paper: {TITLES.get(path.stem, path.stem)}",
        f"{INTRODUCTION} Of {len(rows)} entries {open_ends} are not reproduced.",
        "\n".join(
            [
                f"| {' | '.join(head)} |",
                "| " + " | ".join(["---"] * len(head)) + " |",
                *(_line(row, accepted) for row in rows),
            ]
        ),
    ]
    return "\n\n".join(lines) + "\n"
