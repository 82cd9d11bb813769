"""tools/check.py finds each fault it promises to find: every one is planted in a small project."""

import ast
import fnmatch
import json
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from fastcore.docments import docments
from scripts import ROOT, load

import oodnb

LOW, HIGH = "nbs/1_low/10_low.ipynb", "nbs/2_high/01_high.ipynb"
check = load("tools", "check")


def nbdev(command, folder):
    assert check.run_nbdev(command, folder) == []


def cell(number, source, kind="code", **more):
    body = dict(
        cell_type=kind, id=f"cell{number:04}", metadata={}, source=source.splitlines(keepends=True)
    )
    return body | (dict(execution_count=None, outputs=[]) if kind == "code" else {}) | more


def write(path, *sources):
    cells = [
        source | dict(id=f"cell{i:04}") if isinstance(source, dict) else cell(i, source)
        for i, source in enumerate(sources)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    path.write_text(
        json.dumps(
            dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5),
            indent=1,
            sort_keys=True,
            ensure_ascii=False,
        )
        + "\n"
    )


FRONT_PAGE = [
    "#| default_exp __init__",
    cell(1, "# house\n\n> A small one.", "markdown"),
    '#| export\n__version__ = "0.1.0"',
    "#| export\nfrom importlib import import_module\nfrom typing import TYPE_CHECKING",
    "#| export\nif TYPE_CHECKING:\n    from oodnb.high import high",
    '#| export\n_HOMES = {"high": "high"}',
    "#| export\ndef __getattr__(name):\n"
    '    return getattr(import_module("oodnb." + _HOMES[name]), name)',
]


@pytest.fixture(scope="module")
def clean_project(tmp_path_factory):
    """A small project in good order: a front page, two modules, a method, a paper notebook."""
    root = tmp_path_factory.mktemp("project")
    for name in ("settings.ini", "pyproject.toml", "ruff.toml"):
        shutil.copy(ROOT / name, root)
    write(root / "nbs/0_ground/00_front_page.ipynb", *FRONT_PAGE)
    write(
        root / LOW,
        "#| default_exp low",
        "#| export\nimport math",
        "#| export\ndef low() -> float:\n    return math.pi",
    )
    write(
        root / HIGH,
        "#| default_exp high",
        "#| export\nfrom oodnb.low import low",
        "#| export\ndef high() -> float:\n    return low()",
        "assert high() > 3",
    )
    write(
        root / "nbs/3_coop/01_coop.ipynb",
        "#| default_exp methods.coop",
        "#| export\nfrom oodnb.high import high",
        "#| export\ndef fit() -> float:\n    return high()",
    )
    parameters = dict(tags=["parameters"])
    write(root / "nbs/papers/table.ipynb", cell(0, 'scale: str = "mini"', metadata=parameters))
    nbdev("export", root)
    nbdev("clean", root)
    return root


@pytest.fixture
def project(clean_project, tmp_path):
    return Path(shutil.copytree(clean_project, tmp_path / "copy"))


def change(path, edit):
    notebook = json.loads(path.read_text())
    edit(notebook["cells"])
    path.write_text(json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def edit(path, index, source):
    change(path, lambda cells: cells[index].update(source=source.splitlines(keepends=True)))


def add(path, *sources):
    change(path, lambda cells: cells.extend(cell(90 + i, s) for i, s in enumerate(sources)))


def found(project, *rules):
    """The findings of these rules; of all of them if none is named."""
    notebooks, broken = check.read_notebooks(project)
    lines = [line for rule in rules for line in rule(notebooks)] if rules else None
    return "\n".join(check.findings(project) if lines is None else [*broken, *lines])


def test_a_clean_project_has_no_findings(project):
    assert found(project) == ""


def test_edited_stale_and_missing_modules(project):
    with open(project / "oodnb/low.py", "a") as file:
        file.write("\nx = 1\n")
    (project / "oodnb/old.py").write_text("")
    (project / "oodnb/high.py").unlink()
    (project / "oodnb/_modidx.py").write_text("d = {}\n")
    (project / "oodnb/__init__.py").write_text('__version__ = "0.0.0"\n')
    report = found(project)
    assert "oodnb/low.py: differs from its notebook" in report
    assert "oodnb/old.py: no notebook exports it" in report
    assert "oodnb/high.py: missing" in report
    assert "oodnb/_modidx.py: differs" in report and "oodnb/__init__.py: differs" in report


def test_notebook_changed_but_not_exported(project):
    edit(project / LOW, 2, "#| export\ndef low() -> float:\n    return 3")
    assert found(project) == (
        "oodnb/low.py: differs from its notebook; "
        "run nbdev-export (or nbdev-update, if the module was edited)"
    )


# floors

UPWARDS = [
    "from oodnb.high import high",
    "import oodnb.high",
    "import oodnb.high as upstairs",
    "from oodnb import high",
    "from .high import high",
    "from . import high",
    "def late():\n    from oodnb.high import high\n\n    return high",
    "def late():\n    return importlib.import_module('oodnb.high')",
    "def late():\n    return import_module('.high', 'oodnb')",
    "def late():\n    return __import__('oodnb.high')",
    "if TYPE_CHECKING:\n    import math\nelse:\n    import oodnb.high",
]


@pytest.mark.parametrize("line", UPWARDS)
def test_import_upwards(project, line):
    """`high` imports `low`, so each of these is a circle as well."""
    add(project / LOW, "#| export\n" + line)
    report = found(project, check.check_imports)
    assert f"{LOW} cell 3: low (1, 10) imports upwards from high (2, 1)" in report


ALLOWED = [
    "if TYPE_CHECKING:\n    from oodnb.high import high",
    "if typing.TYPE_CHECKING:\n    import oodnb.high",
    "import oodnb\n\nversion = oodnb.__version__",
    "from importlib import import_module\nmath = import_module('math')",
    "def f(name):\n    return name.high",
]


@pytest.mark.parametrize("line", ALLOWED)
def test_what_is_no_import_upwards(project, line):
    add(project / LOW, "#| export\n" + line)
    assert found(project, check.check_imports) == ""


def test_imports_inside_a_chapter_and_a_package(project):
    """Numbers decide inside a chapter, relative imports count from the package of the module."""
    for number, name, wanted in (
        (2, "roc", ".metrics"),
        (3, "metrics", ".roc"),
        (4, "up", "..high"),
    ):
        source = f"#| export\nfrom {wanted} import x"
        write(
            project / f"nbs/1_low/0{number}_{name}.ipynb", f"#| default_exp measure.{name}", source
        )
    report = found(project, check.check_imports)
    assert "measure.roc (1, 2) imports upwards from measure.metrics (1, 3)" in report
    assert "measure.up (1, 4) imports upwards from high (2, 1)" in report
    assert "measure.metrics (1, 3)" not in report.replace("from measure.metrics (1, 3)", "")


def test_importing_a_module_imports_its_package(project):
    write(
        project / "nbs/2_high/09_room.ipynb", "#| default_exp measure.__init__", "#| export\nx = 1"
    )
    write(project / "nbs/1_low/05_roc.ipynb", "#| default_exp measure.roc", "#| export\ny = 1")
    add(project / HIGH, "#| export\nfrom oodnb.measure.roc import y")
    report = found(project, check.check_imports)
    assert "high (2, 1) imports upwards from measure.__init__ (2, 9)" in report


def test_the_front_page_is_for_users(project):
    add(
        project / HIGH, "#| export\nfrom oodnb import __version__", "#| export\nx = oodnb.low.low()"
    )
    report = found(project, check.check_imports)
    assert f"{HIGH} cell 4: high takes __version__ from oodnb, the page for users" in report
    assert f"{HIGH} cell 5: high takes low from oodnb" in report


def test_methods_of_two_chapters_do_not_know_each_other(project):
    for place in ("3_coop/02_locoop", "4_hftt/01_hftt"):
        name = place.partition("_")[2].rpartition("_")[2]
        source = "#| export\nfrom oodnb.methods.coop import fit"
        write(project / f"nbs/{place}.ipynb", f"#| default_exp methods.{name}", source)
    report = found(project, check.check_imports)
    assert "01_hftt.ipynb cell 1: methods.hftt imports methods.coop" in report
    assert "methods.locoop" not in report


def test_numbers(project):
    write(project / "nbs/2_high/01_twin.ipynb", "#| default_exp twin", "#| export\nx = 1")
    write(project / "nbs/2_high/02_high.ipynb", "#| default_exp other", "#| export\nx = 1")
    write(project / "nbs/3_again/07_seven.ipynb", "#| default_exp seven", "#| export\nx = 1")
    for place in ("2_high/bare", "library/10_old", "9_top", "2_high/3_deep/01_deeper"):
        name = place.rpartition("/")[2]
        write(project / f"nbs/{place}.ipynb", f"#| default_exp {name}", "#| export\nx = 1")
    report = found(project, check.check_numbers)
    assert "nbs/2_high/01_twin.ipynb: has the number of 01_high.ipynb" in report
    assert "nbs/2_high/02_high.ipynb: differs from 01_high.ipynb by its number only" in report
    assert "nbs/3_coop: has the number of nbs/3_again" in report
    for name in ("bare", "10_old", "9_top", "01_deeper"):
        assert f"exports {name}, but lies in no chapter" in report
    assert report.count("\n") == 6


# cells


def test_long_cell_and_mixed_cell(project):
    long = "#| export\n" + "\n".join(f"x{i} = {i}" for i in range(60))
    add(project / HIGH, long, "#| export\nimport os\n\ny = os.sep")
    report = found(project, check.check_cells)
    assert f"{HIGH} cell 4: exported cell of 61 lines" in report
    assert f"{HIGH} cell 5: imports and code in one exported cell" in report


def test_sixty_lines_are_allowed_and_imports_not_counted(project):
    long = "#| export\n" + "\n".join(f"x{i} = {i}" for i in range(59)) + "\n\n"
    imports = "#| export\n" + "\n".join(f"import m{i}" for i in range(70))
    add(project / HIGH, long, imports)
    assert found(project, check.check_cells) == ""


TWO = [
    "def one():\n    pass\n\n\ndef two():\n    pass",
    "class One:\n    pass\n\n\ndef two():\n    pass",
    "async def one():\n    pass\n\n\nclass Two:\n    pass",
]
ONE = [
    "def one():\n    pass\n\n\ndef _two():\n    pass\n\n\ndef _three():\n    pass",
    "@dataclass\nclass One:\n    x: int\n\n    def get(self):\n        pass\n\n"
    "    def put(self):\n        pass",
    "A, B = 1, 2\nC = 3",
]


@pytest.mark.parametrize("source", TWO)
def test_two_public_names_in_a_cell(project, source):
    add(project / LOW, "#| export\n" + source)
    assert f"{LOW} cell 3: offers " in found(project, check.check_cells)


@pytest.mark.parametrize("source", ONE)
def test_one_public_name_with_what_serves_it(project, source):
    add(project / LOW, "#| export\n" + source)
    assert found(project, check.check_cells) == ""


def test_heavy_cells(project):
    """One heavy cell in three is above the nine in ten, most of them move the median."""
    heavy = "#| export\n" + "\n".join(f'x{i} = "{"y" * 80}"' for i in range(20))
    assert 1_700 < len(heavy)
    add(project / LOW, heavy)
    report = found(project, check.check_cells, check.check_sizes)
    assert report.startswith(f"nbs: one exported cell in ten has {len(heavy)} characters or more")
    assert report.count("\n") == 0
    add(project / LOW, *[heavy] * 9)
    assert f"a median of {len(heavy)} characters" in found(project, check.check_sizes)


def test_table_of_sizes(project):
    sizes = list(check.table_of_sizes(check.read_notebooks(project)[0]))
    assert [line.split()[0] for line in sizes[1:]] == [
        "0_ground",
        "1_low",
        "2_high",
        "3_coop",
        "all",
    ]
    length = len("#| export\ndef low() -> float:\n    return math.pi")
    assert sizes[2].split()[1:] == ["1", str(length), str(length), str(length)]
    done = run_check("--sizes", project)
    assert done.returncode == 0 and done.stdout.splitlines() == sizes


# types

UNTYPED = [
    ("def f(x, *rest, y=1, **more) -> int:\n    return 1", "f", "x, rest, y, more"),
    ("def f(x: int):\n    return x", "f", "return"),
    ("def f(x, /, y: int) -> int:\n    return x", "f", "x"),
    ("async def f(x: int):\n    return x", "f", "return"),
    ("@cache\ndef f(x) -> int:\n    return x", "f", "x"),
    ("class C:\n    def __init__(self, x):\n        pass", "C.__init__", "x, return"),
    ("class C:\n    @property\n    def x(self):\n        pass", "C.x", "return"),
    ("class C:\n    @classmethod\n    def of(cls, x: int):\n        pass", "C.of", "return"),
]
TYPED = [
    "def f(x: int, *rest: int, y: int = 1, **more: int) -> int:\n    return 1",
    "def _f(x):\n    return x",
    "def __getattr__(name):\n    return name",
    "class _C:\n    def f(self, x):\n        pass",
    "class C:\n    def __init__(self, x: int) -> None:\n        pass",
    "class C:\n    def _f(self, x):\n        pass\n\n    def __len__(self):\n        pass",
    "def f() -> None:\n    def inner(x):\n        pass",
]


@pytest.mark.parametrize("source, name, bare", UNTYPED)
def test_public_functions_without_types(project, source, name, bare, monkeypatch):
    monkeypatch.setattr(check, "TYPED", ("1_low/*",))
    edit(project / LOW, 2, "#| export\n" + source)
    report = found(project, check.check_types)
    assert report.startswith(f"{LOW} cell 2: {name} has no annotation of {bare}; ")
    assert report.count("\n") == 0


@pytest.mark.parametrize("source", TYPED)
def test_what_needs_no_more_types(project, source, monkeypatch):
    monkeypatch.setattr(check, "TYPED", ("1_low/*",))
    edit(project / LOW, 2, "#| export\n" + source)
    add(project / LOW, "def lesson(x):\n    return x")
    assert found(project, check.check_types) == ""


def test_rooms_that_say_their_types(project, monkeypatch):
    """Rooms are named by patterns, single notebooks are let off, and "*" is all of them."""

    def held():
        report = found(project, check.check_types).splitlines()
        return [line.partition(" cell")[0] for line in report]

    assert held() == []
    for place, name in ((LOW, "low"), (HIGH, "high"), ("nbs/3_coop/01_coop.ipynb", "fit")):
        edit(project / place, 2, f"#| export\ndef {name}():\n    return 3.0")
    monkeypatch.setattr(check, "TYPED", ())
    assert held() == []
    monkeypatch.setattr(check, "TYPED", ("*",))
    assert held() == [LOW, HIGH, "nbs/3_coop/01_coop.ipynb"]
    monkeypatch.setattr(check, "NOT_YET_TYPED", ("1_low/10_low",))
    assert held() == [HIGH, "nbs/3_coop/01_coop.ipynb"]
    monkeypatch.setattr(check, "TYPED", ("1_low/*", "2_high/*"))
    assert held() == [HIGH] and found(project).startswith(f"{HIGH} cell 2: high has no annotation")


def test_rooms_and_notebooks_of_the_rule_exist():
    """A name that was changed lets nothing off unseen."""
    notebooks, _ = check.read_notebooks(ROOT)
    places = [f"{n.path.parent.name}/{n.path.stem}" for n in notebooks]
    assert all(fnmatch.filter(places, room) for room in check.TYPED)
    assert set(check.NOT_YET_TYPED) <= set(places)


# form

METRIC = "# Name of a metric, or a function of in- and out-of-distribution scores"
BACK = "# the mean of the metric over all samples, in percent, and with ties counted as a half"
INNER = "# archives inside it, each pattern with the folder beside it that it fills"
UNTIDY = f"""#| export
from dataclasses import dataclass, field


def bootstrap(
    samples=1000, # how often
    metric: str | None = None, {METRIC}
    seed=0, # Fixes what is drawn
) -> tuple[float, float]: {BACK}
    return 0., 1.


@dataclass
class Archive:
    name: str # of the file
    inner: dict | None = None {INNER}
    table: dict = field(default_factory=lambda: {{
        "a": 1, # a comment of its own
    }})
"""
TIDY = f"""#| export
from dataclasses import dataclass, field


def bootstrap(
    samples=1000,  # how often
    {METRIC}
    metric: str | None = None,
    seed=0,  # Fixes what is drawn
    {BACK}
) -> tuple[float, float]:
    return 0.0, 1.0


@dataclass
class Archive:
    name: str  # of the file
    {INNER}
    inner: dict | None = None
    table: dict = field(default_factory=lambda: {{
        "a": 1,  # a comment of its own
    }})
"""


def formatted(folder, source):
    (folder / "cell.py").write_text(source)
    shutil.copy(ROOT / "ruff.toml", folder)
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--no-cache", "cell.py"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "cell.py").read_text()


def torn(source):
    return list(check.torn_comments(ast.parse(source), source))


def test_comments_that_the_formatter_tears_off(project, tmp_path):
    """Three comments lose what they explain when ruff wraps their lines; above it they stay."""
    assert torn(UNTIDY) == []
    after = formatted(tmp_path, UNTIDY)
    assert torn(after) == [METRIC, BACK, INNER]
    assert torn(formatted(tmp_path, TIDY)) == []
    add(project / LOW, after)
    report = found(project, check.check_cells)
    assert f"{LOW} cell 3: '{METRIC}'" in report and report.count("put it on a line") == 3


def test_help_reads_what_the_rule_lets_pass(tmp_path):
    """docments of the same function and fields before and after the formatter."""

    def read(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        module = load(tmp_path, name)
        return [docments(module.bootstrap), docments(module.Archive, returns=False)]

    says = read("untidy", UNTIDY)
    assert says[0]["return"] == BACK.strip("# ") and says[1]["inner"] == INNER.strip("# ")
    tidy = read("tidy", formatted(tmp_path, TIDY))
    torn_off = read("torn_off", formatted(tmp_path, UNTIDY))
    assert tidy == says
    assert torn_off[0]["metric"] is torn_off[0]["return"] is torn_off[1]["inner"] is None


def test_unformatted_files(project):
    (project / "tools").mkdir()
    (project / "tools/untidy.py").write_text("x = 'one'\n")
    (project / "setup.py").write_text('y = "two"\n')
    (project / "oodnb/free.py").write_text("z = 'three'\n")
    add(project / LOW, "x = 1 ; y = 2")
    assert list(check.check_format(project)) == [
        f"{LOW}: not in the form of the house; run ruff format {LOW}",
        "tools/untidy.py: not in the form of the house; run ruff format tools/untidy.py",
    ]


def test_wide_lines(project):
    fits, wide = f"x = '{'x' * 94}'", f"y = '{'y' * 95}'"
    address = f"# see https://example.org/{'z' * 100}"
    assert len(fits) == check.MAX_WIDTH
    add(project / LOW, f"{fits}\n{wide}\n{address}")
    (project / "tests").mkdir()
    (project / "tests/test_wide.py").write_text(f"{address}\n{fits}\n{wide}\n")
    (project / "oodnb/free.py").write_text(wide)
    report = list(check.check_width(project, check.read_notebooks(project)[0]))
    assert [line.partition(", at most")[0] for line in report] == [
        f"{LOW} cell 3 line 2: 101 characters",
        "tests/test_wide.py line 3: 101 characters",
    ]


def test_the_formatter_and_the_check_agree_on_the_width():
    assert f"line-length = {check.MAX_WIDTH}" in (ROOT / "ruff.toml").read_text().splitlines()


# outputs and metadata


def test_outputs(project):
    error = dict(output_type="error", ename="KeyError", evalue="'x'", traceback=[])
    stream = dict(output_type="stream", name="stdout", text=["x" * 300_000])
    change(project / HIGH, lambda cells: cells[3].update(outputs=[error, stream]))
    change(
        project / "nbs/papers/table.ipynb",
        lambda cells: cells[0].update(
            outputs=[dict(output_type="stream", name="stdout", text=["1"])]
        ),
    )
    report = found(project)
    assert "01_high.ipynb: 301 kB, at most 300 kB" in report
    assert "01_high.ipynb cell 3: saved error KeyError: 'x'" in report
    assert "nbs/papers/table.ipynb cell 0: a paper notebook is committed without outputs" in report


def test_dirty_metadata(project):
    change(
        project / LOW,
        lambda cells: cells[1].update(execution_count=7, metadata=dict(collapsed=True)),
    )
    assert (
        found(project)
        == f"{LOW}: has metadata or outputs that nbdev-clean removes; run nbdev-clean"
    )


def test_cells_that_never_run(project):
    change(
        project / LOW,
        lambda cells: cells.extend(
            [cell(8, "#| eval: false\n1 / 0"), cell(9, "#| eval: false\n%pip install oodnb")]
        ),
    )
    report = found(project)
    assert "10_low.ipynb cell 3: '#| eval: false' hides a cell" in report and "cell 4" not in report


def test_broken_notebooks(project):
    (project / LOW).write_text("{")
    change(project / HIGH, lambda cells: cells[2].update(source=["#| export\n", "def high(: pass"]))
    report = found(project)
    assert (
        "10_low.ipynb: not a notebook" in report
        and "01_high.ipynb cell 2: does not parse" in report
    )


def run_check(*arguments):
    command = [sys.executable, ROOT / "tools/check.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_exit_codes(project, tmp_path):
    assert run_check(project).returncode == 0
    (project / "oodnb/low.py").unlink()
    done = run_check(project)
    assert done.returncode == 1 and done.stdout.strip() == "oodnb/low.py: missing; run nbdev-export"
    assert run_check(tmp_path / "nothing").returncode == 1


# version and hook


def test_version_stands_in_two_places_and_agrees():
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", "utf-8")
    assert oodnb.__version__ == settings["DEFAULT"]["version"]


def test_commit_hook_refuses_what_is_not_in_order(project, tmp_path):
    """A commit with a changed notebook or an untidy file is refused once, with the list of files;
    after adding them it passes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = dict(PATH=path, HOME=str(tmp_path), GIT_CONFIG_NOSYSTEM="1")
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "t", f"GIT_{who}_EMAIL": "t@example.org"}

    def git(*arguments):
        command = ["git", *arguments]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)

    def commit():
        git("add", "-A")
        return git("commit", "-m", "all in order")

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (project / ".gitignore").write_text("__pycache__/\n.last_checked\n")
    git("init", "--quiet")
    git("config", "core.hooksPath", str(ROOT / ".githooks"))
    first = commit()
    assert first.returncode == 0, first.stderr
    edit(project / LOW, 2, "#| export\ndef low() -> float: return 3")
    (project / "setup.py").write_text("x = 'one'\n")
    refused = commit()
    assert refused.returncode == 1 and "git add" in refused.stderr
    assert [line.strip() for line in refused.stderr.splitlines() if line.startswith("    ")] == [
        LOW,
        "oodnb/low.py",
        "setup.py",
    ]
    assert (project / "setup.py").read_text() == 'x = "one"\n'
    assert commit().returncode == 0
