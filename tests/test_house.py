"""tools/check.py finds each fault it promises to find: every fault is planted in a temporary project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT, load

LIBRARY = "nbs/library"
check = load("tools", "check")


def nbdev(command, folder):
    assert check.run_nbdev(command, folder) == []


def cell(number, source, kind="code", **more):
    body = dict(cell_type=kind, id=f"cell{number:04}", metadata={}, source=source.splitlines(keepends=True))
    return body | (dict(execution_count=None, outputs=[]) if kind == "code" else {}) | more


def write(path, *sources):
    cells = [source | dict(id=f"cell{i:04}") if isinstance(source, dict) else cell(i, source) for i, source in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@pytest.fixture(scope="module")
def clean_project(tmp_path_factory):
    """A small project in good order: two modules, a method, a paper notebook."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "settings.ini", root)
    write(root / LIBRARY / "10_low.ipynb", "#| default_exp low", "#| export\nimport math", "#| export\ndef low(): return math.pi")
    write(root / LIBRARY / "20_high.ipynb", "#| default_exp high", "#| export\nfrom oodnb.low import low", "#| export\ndef high(): return low()", "assert high() > 3")
    write(root / "nbs/methods/50_coop.ipynb", "#| default_exp methods.coop", "#| export\nfrom oodnb.high import high", "#| export\ndef fit(): return high()")
    write(root / "nbs/papers/table.ipynb", cell(0, "scale: str = 'mini'", metadata=dict(tags=["parameters"])))
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


def found(project):
    return "\n".join(check.findings(project))


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
    change(project / LIBRARY / "10_low.ipynb", lambda cells: cells[2].update(source=["#| export\n", "def low(): return 3"]))
    assert found(project) == "oodnb/low.py: differs from its notebook; run nbdev_export (or nbdev_update, if the module was edited)"


@pytest.mark.parametrize("line", ["from oodnb.high import high", "import oodnb.high", "from oodnb import high", "def late():\n    from oodnb.high import high\n    return high"])
def test_import_upwards(project, line):
    change(project / LIBRARY / "10_low.ipynb", lambda cells: cells.append(cell(9, "#| export\n" + line)))
    assert f"{LIBRARY}/10_low.ipynb cell 3: low (10) imports upwards from high (20)" in found(project)


def test_methods_do_not_know_each_other(project):
    for number, name in ((51, "locoop"), (52, "hftt")):
        write(project / f"nbs/methods/{number}_{name}.ipynb", f"#| default_exp methods.{name}", "#| export\nfrom oodnb.methods.coop import fit")
    report = found(project)
    assert "52_hftt.ipynb cell 1: methods.hftt imports methods.coop" in report
    assert "methods.locoop imports" not in report


def test_numbers(project):
    write(project / LIBRARY / "20_twin.ipynb", "#| default_exp twin", "#| export\nx = 1")
    write(project / LIBRARY / "bare.ipynb", "#| default_exp bare", "#| export\nx = 1")
    report = found(project)
    assert "has the number of" in report and "bare.ipynb: exports bare, but its name has no number" in report


def test_long_cell_and_mixed_cell(project):
    long = "#| export\n" + "\n".join(f"x{i} = {i}" for i in range(60))
    change(project / LIBRARY / "20_high.ipynb", lambda cells: cells.extend([cell(8, long), cell(9, "#| export\nimport os\ny = os.sep")]))
    report = found(project)
    assert "20_high.ipynb cell 4: exported cell of 61 lines" in report
    assert "20_high.ipynb cell 5: imports and code in one exported cell" in report


def test_sixty_lines_are_allowed(project):
    long = "#| export\n" + "\n".join(f"x{i} = {i}" for i in range(59)) + "\n\n"
    change(project / LIBRARY / "20_high.ipynb", lambda cells: cells.append(cell(8, long)))
    assert "exported cell of" not in found(project)


def test_outputs(project):
    error = dict(output_type="error", ename="KeyError", evalue="'x'", traceback=[])
    stream = dict(output_type="stream", name="stdout", text=["x" * 300_000])
    change(project / LIBRARY / "20_high.ipynb", lambda cells: cells[3].update(outputs=[error, stream]))
    change(project / "nbs/papers/table.ipynb", lambda cells: cells[0].update(outputs=[dict(output_type="stream", name="stdout", text=["1"])]))
    report = found(project)
    assert "20_high.ipynb: 301 kB, at most 300 kB" in report
    assert "20_high.ipynb cell 3: saved error KeyError: 'x'" in report
    assert "nbs/papers/table.ipynb cell 0: a paper notebook is committed without outputs" in report


def test_dirty_metadata(project):
    change(project / LIBRARY / "10_low.ipynb", lambda cells: cells[1].update(execution_count=7, metadata=dict(collapsed=True)))
    assert found(project) == f"{LIBRARY}/10_low.ipynb: has metadata or outputs that nbdev_clean removes; run nbdev_clean"


def test_cells_that_never_run(project):
    change(project / LIBRARY / "10_low.ipynb", lambda cells: cells.extend([cell(8, "#| eval: false\n1 / 0"), cell(9, "#| eval: false\n%pip install oodnb")]))
    report = found(project)
    assert "10_low.ipynb cell 3: '#| eval: false' hides a cell" in report and "cell 4" not in report


def test_broken_notebooks(project):
    (project / LIBRARY / "10_low.ipynb").write_text("{")
    change(project / LIBRARY / "20_high.ipynb", lambda cells: cells[2].update(source=["#| export\n", "def high(: pass"]))
    report = found(project)
    assert "10_low.ipynb: not a notebook" in report and "20_high.ipynb cell 2: does not parse" in report


def test_exit_codes(project, tmp_path):
    def run(folder):
        return subprocess.run([sys.executable, ROOT / "tools/check.py", folder], capture_output=True, text=True)

    assert run(project).returncode == 0
    (project / "oodnb/low.py").unlink()
    done = run(project)
    assert done.returncode == 1 and done.stdout.strip() == "oodnb/low.py: missing; run nbdev_export"
    assert run(tmp_path / "nothing").returncode == 1


def test_commit_hook_refuses_what_is_not_exported(project, tmp_path):
    """A commit with a changed notebook is refused once, with the list of files; after adding them it passes."""
    environment = dict(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), HOME=str(tmp_path), GIT_CONFIG_NOSYSTEM="1",
                       GIT_AUTHOR_NAME="t", GIT_AUTHOR_EMAIL="t@example.org", GIT_COMMITTER_NAME="t", GIT_COMMITTER_EMAIL="t@example.org")

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=project, env=environment, capture_output=True, text=True)

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (project / ".gitignore").write_text("__pycache__/\n.last_checked\n")
    git("init", "--quiet")
    git("config", "core.hooksPath", str(ROOT / ".githooks"))
    git("add", "-A")
    first = git("commit", "-m", "all in order")
    assert first.returncode == 0, first.stderr
    change(project / LIBRARY / "10_low.ipynb", lambda cells: cells[2].update(source=["#| export\n", "def low(): return 3"]))
    git("add", "-A")
    refused = git("commit", "-m", "forgot to export")
    assert refused.returncode == 1 and "oodnb/low.py" in refused.stderr and "git add" in refused.stderr
    git("add", "-A")
    assert git("commit", "-m", "exported").returncode == 0
