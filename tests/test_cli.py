"""The command `oodnb`, from outside: exit codes, messages, and runs that are killed half-way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papers import ROWS, WAIT, gone, only_folder, start, wait_for, where, write

import oodnb
from oodnb.reproduce import main


@pytest.fixture
def papers(tmp_path):
    folder = tmp_path / "pa{pers} with spaces"
    folder.mkdir()
    write(folder / "count.ipynb", ROWS)
    return folder


@pytest.mark.parametrize(("words", "message"), [
    (["run", "cuont"], "Did you mean 'count'?"),
    (["run", "count", "-p", "sede", "1"], "Did you mean 'seed'?"),
    (["run", "count", "-p", "seed", "1.5"], "seed is int (default 0), but got 1.5 (float)"),
    (["run", "count", "-p", "seed", "many"], "got 'many' (str)"),
    (["run", "count", "-p", "seed", "true"], "got True (bool)"),
    (["run", "count", "-p", "names", "a,b"], "write a JSON list"),
    (["run", "count", "-p", "out", "here"], "pass --out DIR"),
    (["run", "count", "-p", "scale", "mini", "--scale", "paper"], "scale is given twice"),
    (["run", "count", "-p", "scale", "huge"], "'mini' (embedded, offline) or 'paper'"),
    (["run", "count", "-p", "seed", "3", "--accept"], "and here seed differs"),
])  # fmt: skip
def test_wrong_usage_is_found_before_anything_runs(papers, capsys, words, message):
    assert main([*words, *where(papers)]) == 2
    assert message in capsys.readouterr().err
    assert not (papers.parent / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [[], ["rnu"], ["run"], ["run", "count", "-p", "seed"], ["run", "count", "--scale", "huge"]],
)
def test_unreadable_command_lines_exit_with_2(papers, capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: oodnb" in capsys.readouterr().err


def test_a_notebook_without_parameters_cell_is_refused(papers, capsys):
    nbformat.write(new_notebook(cells=[new_code_cell("seed = 1")]), papers / "plain.ipynb")
    assert main(["run", "plain", *where(papers)]) == 2
    assert "0 cells tagged 'parameters'" in capsys.readouterr().err


def test_list_names_runs_and_parameters(papers, capsys):
    assert main(["list", *where(papers)]) == 0
    assert capsys.readouterr().out.split() == ["count", "not", "run", "Counts", "names."]
    assert main(["list", "count", *where(papers)]) == 0
    assert "seed: int = 0  # seed" in capsys.readouterr().out.splitlines()


def test_an_installed_package_says_where_the_notebooks_are(tmp_path):
    shutil.copytree(
        Path(oodnb.__file__).parent,
        tmp_path / "site" / "oodnb",
        ignore=shutil.ignore_patterns("__pycache__", "shipped"),
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-m", "oodnb.reproduce", "list"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        "live in the repository" in done.stderr
        and "--notebooks DIR" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"oodnb {oodnb.__version__}\n"


def test_a_finished_run_is_skipped_and_a_forced_one_gives_the_same_bytes(papers, capsys):
    command = ["run", "count", "-p", "rate", "1", "-p", "names", '["x"]', *where(papers)]
    assert main(command) == 0
    assert "done in" in capsys.readouterr().out
    folder = only_folder(papers, "count")
    rows, finished = (folder / "rows.csv").read_bytes(), (folder / "done.json").stat().st_mtime_ns
    assert rows == b"scale,seed,rate,names\nmini,0,1.0,1\n"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["parameters"]["rate"] == 1.0
        and manifest["peak_memory_mb"] > 10
        and set(manifest["files"]) == {"executed.ipynb", "rows.csv"}
    )

    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (folder / "done.json").stat().st_mtime_ns == finished

    assert main([*command, "--force"]) == 0
    assert (folder / "rows.csv").read_bytes() == rows
    assert (folder / "done.json").stat().st_mtime_ns > finished


def test_a_failed_run_keeps_its_notebook_and_the_next_one_still_runs(papers, capsys):
    write(papers / "bad.ipynb", "values = [1]", "values[3]")
    assert main(["run", "bad", "count", *where(papers)]) == 1
    said = capsys.readouterr()
    folder = only_folder(papers, "bad")
    assert (
        "bad failed in cell 4 (`values[3]`): IndexError" in said.err
        and str(folder / "failed.ipynb") in said.err
    )
    assert "1 of 2 runs failed: bad" in said.err
    assert "IndexError" in (folder / "failed.ipynb").read_text()
    assert (
        not (folder / "done.json").exists()
        and (only_folder(papers, "count") / "done.json").exists()
    )


def test_a_kernel_that_dies_is_reported(papers, capsys):
    write(papers / "dies.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert main(["run", "dies", *where(papers)]) == 1
    said = capsys.readouterr().err
    assert (
        "dies failed in cell 3" in said
        and "The kernel died; it may have used up the memory (at its peak" in said
    )
    assert not (only_folder(papers, "dies") / "done.json").exists()


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_run_leaves_nothing_behind_and_starts_again(papers, capsys, sign, code):
    write(papers / "slow.ipynb", WAIT, ROWS)
    command = start(papers, "run", "slow")
    runs = papers.parent / "runs" / "slow"
    try:
        wait_for(lambda: any(p.read_text() for p in runs.glob("*/begun")), "the first cell")
        kernel = int((only_folder(papers, "slow") / "begun").read_text())
        command.send_signal(sign)
        assert command.wait(60) == code
    finally:
        command.kill()
    wait_for(lambda: gone(kernel), "the kernel to stop")
    folder = only_folder(papers, "slow")
    assert (folder / "executing.ipynb").exists() and not (folder / "done.json").exists()

    assert main(["list", *where(papers)]) == 0
    assert "slow   interrupted" in capsys.readouterr().out
    assert main(["status", "slow", *where(papers)]) == 3
    assert " interrupted " in capsys.readouterr().out
    assert main(["run", "slow", *where(papers)]) == 0
    assert (folder / "done.json").exists() and not (folder / "executing.ipynb").exists()
    assert (folder / "rows.csv").read_bytes() == b"scale,seed,rate,names\nmini,0,0.5,2\n"
