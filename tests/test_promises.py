"""The table of promises in CONTRIBUTING names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## What the library promises")[1]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 10
    for line in lines:
        kind, _, tests = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert kind in ("survives", "refuses", "names"), line
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert named and len(named) == tests.count("`") // 2, line
        for file, name in named:
            tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
            assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name
