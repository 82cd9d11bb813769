"""What a result depends on, tried on a copy of the package: edits that rename no run, and edits
that rename exactly those they reach."""

import ast
import json
import re
import shutil
import time
from pathlib import Path

import pytest

import oodnb
from oodnb.running.dependencies import depends_on, reached_modules, read_code, say_changes

ROOT = Path(oodnb.__file__).parents[1]
# modules that run, watch and report on notebooks: no result may depend on them
MACHINERY = [
    "running.plan",
    "running.state",
    "running.kernel",
    "running.one_run",
    "running.cluster",
    "running.many",
    "running.tables",
    "running.page",
    "running.dependencies",
    "reproduce",
    "command.data",
    "command.doctor",
]


class Copy:
    """Package, paper notebooks and shipped data, to be edited."""

    def __init__(self, folder):
        self.package, self.data, self.papers = folder / "oodnb", folder / "data", folder / "papers"
        shutil.copytree(
            ROOT / "oodnb", self.package, ignore=shutil.ignore_patterns("__pycache__", "shipped")
        )
        shutil.copytree(ROOT / "data" / "lists", self.data / "lists")
        shutil.copytree(ROOT / "data" / "reproduced", self.data / "reproduced")
        shutil.copytree(ROOT / "nbs" / "papers", self.papers)

    def hashes(self):
        return {
            p.stem: depends_on(p, self.package, self.data)
            for p in sorted(self.papers.glob("[!_.]*.ipynb"))
        }

    def file(self, module):
        path = self.package.joinpath(*module.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def edit(self, module, change):
        path = self.file(module)
        text = change(path.read_text("utf-8"))
        assert text != path.read_text("utf-8")
        path.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("before")).hashes()


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def renamed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def reaching(before, part):
    return {name for name, parts in before.items() if part in parts}


def test_words_and_formatting_rename_no_run(copy, before):
    """Every module and every notebook gets other docstrings, comments and line breaks."""
    for path in copy.package.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(
                node, clean=False
            ):
                node.body[0].value.value = "Other words."
            if isinstance(node, ast.FunctionDef):
                node.returns = ast.Constant("a note")
        path.write_text("# formatted anew\n" + ast.unparse(tree), "utf-8")
    for path in copy.papers.glob("*.ipynb"):
        notebook = json.loads(path.read_text("utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"]) + (
                "\n# a comment" if cell["cell_type"] == "code" else "\n\nMore."
            )
        notebook["cells"].append({"cell_type": "markdown", "source": "The end."})
        path.write_text(json.dumps(notebook), "utf-8")
    assert renamed(before, copy.hashes()) == set()


def test_a_new_method_and_new_published_numbers_rename_no_run(copy, before):
    (copy.package / "methods" / "blank.py").write_text(
        "from ..scores import mcm\n\n\ndef fit_blank(): return mcm\n"
    )
    (copy.data / "published").mkdir()
    (copy.data / "published" / "blank.csv").write_text("paper,value\nblank,1\n")
    (copy.data / "lists" / "ATTRIBUTION.md").write_text("Other words.")
    assert renamed(before, copy.hashes()) == set()


@pytest.mark.parametrize("module", ["scores", "losses", "methods.knn", "evidence.seeds"])
def test_a_changed_constant_renames_exactly_the_runs_that_reach_it(copy, before, module):
    copy.edit(module, lambda text: f"{text}\n_NEW = 1\n")
    after = copy.hashes()
    due = reaching(before, f"oodnb.{module}")
    assert renamed(before, after) == due and due and due != set(before)
    for name in due:
        assert say_changes(before[name], after[name]) == f"oodnb.{module}"


def test_a_changed_number_inside_a_function(copy, before):
    copy.edit("scores", lambda text: re.sub(r"\b1\b", "2", text))
    assert renamed(before, copy.hashes()) == reaching(before, "oodnb.scores")


def test_a_changed_list_renames_those_that_read_it(copy, before):
    (copy.data / "lists" / "toe.json").write_text("{}")
    after = copy.hashes()
    due = renamed(before, after)
    assert due == reaching(before, "data lists/toe.json")
    assert {"toe_imagenet"} <= due and not {
        "zeroshot_imagenet",
        "clipn_readme",
        "hftt_imagenet",
    } & due
    assert say_changes(before["toe_imagenet"], after["toe_imagenet"]) == "data lists/toe.json"


def test_the_scoreboard_depends_on_accepted_rows_and_nothing_else_does(copy, before):
    (copy.data / "reproduced" / "zeroshot_imagenet.csv").write_text("")
    assert renamed(before, copy.hashes()) == {"scoreboard"}
    assert not any("manifests" in part for part in before["scoreboard"])


def test_no_result_depends_on_the_machinery(before):
    assert all((ROOT / "oodnb" / f"{name.replace('.', '/')}.py").is_file() for name in MACHINERY)
    for name, parts in before.items():
        assert not {f"oodnb.{module}" for module in MACHINERY} & set(parts), (
            f"{name} reaches modules that only run or report"
        )


def test_names_of_the_front_page_lead_to_one_module_each(tmp_path):
    package = tmp_path / "demo"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text(
        '__version__ = "1"\n_HOMES = {"load": "models", "score": "scores"}\n'
    )
    for name, text in {
        "models": "from .deep import inner",
        "scores": "K = 1",
        "deep/__init__": "",
        "deep/inner": "import importlib\nimportlib.import_module('demo.late')",
        "late": "",
        "far": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    reach = lambda text: [
        name.removeprefix("demo.") for name in reached_modules(read_code(text), package)
    ]
    assert reach("from demo import load") == ["deep", "deep.inner", "late", "models"]
    assert (
        reach("from demo import score")
        == reach("import demo as d\nd.score()")
        == reach("import demo\ndemo.scores.K")
        == ["scores"]
    )
    assert reach("from demo import *") == ["deep", "deep.inner", "late", "models", "scores"]
    assert (
        reach("def late():\n    from demo import far") == reach("import demo.far as f") == ["far"]
    )
    assert reach("from demo import __version__") == []


def test_imports_by_computed_names_are_not_used():
    """They could not be followed. Doors with a table `_HOMES` may, since the table is, and `late`,
    which is for libraries and never for modules of the package."""
    for path in sorted((ROOT / "oodnb").rglob("*.py")):
        assert 'late("oodnb' not in path.read_text("utf-8"), f"{path.name} hides what it needs"
        if path.name == "late.py":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if getattr(call.func, "attr", getattr(call.func, "id", "")) in (
                "import_module",
                "__import__",
            ):
                assert isinstance(call.args[0], ast.Constant) or "_HOMES" in path.read_text(
                    "utf-8"
                ), f"{path.name}:{call.lineno}: write the name of the module out"


def test_it_is_quick(copy):
    began = time.process_time()
    copy.hashes()
    cold = time.process_time() - began
    began = time.process_time()
    copy.hashes()
    assert cold < 10 and time.process_time() - began < max(1, cold)
