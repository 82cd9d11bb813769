"""Paper notebooks of a few lines, and the command started from outside, for the tests of the
runner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import oodnb

PARAMETERS = """scale: str = "mini"  # mini or paper
seed: int = 0  # seed
rate: float = 0.5  # a number
names: list = ["a", "b"]  # labels
out: str = ""  # folder of the run"""
ROWS = (
    "from pathlib import Path\n(Path(out) / "
    "'rows.csv').write_text(f'scale,seed,rate,names\\n{scale},{seed},{rate},{len(names)}\\n')"
)
WAIT = """import os, time
from pathlib import Path
first = not (Path(out) / "begun").exists()
(Path(out) / "begun").write_text(str(os.getpid()))
if first: time.sleep(120)
"""
COLUMNS = "paper,table,method,backbone,setting,dataset,metric,value,source,std,seeds,scale,run"


def ended(process, seconds=300):
    said = process.communicate(timeout=seconds)[0]
    return process.returncode, said


def write(path, *sources, parameters=PARAMETERS):
    cells = [
        new_markdown_cell("# A run\n\n> Counts names."),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, sources),
    ]
    nbformat.write(new_notebook(cells=cells), path)


def where(papers):
    return ["--notebooks", str(papers), "--out", str(papers.parent / "runs")]


def only_folder(papers, name):
    (folder,) = (p for p in (papers.parent / "runs" / name).iterdir() if p.is_dir())
    return folder


def command(papers, *words):
    """The words that start `oodnb ...` in a process of its own, and its environment."""
    root = str(Path(oodnb.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    }
    return [sys.executable, "-m", "oodnb.reproduce", *words, *where(papers)], environment


def start(papers, *words, before=lambda: None):
    words, environment = command(papers, *words)

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
        before()

    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=papers.parent,
        preexec_fn=prepare,
    )


def wait_for(condition, what, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z"
