"""Commands that show what there is start at once: they import no library that they do not need.

Not a clock decides but the list of modules of a process, which is the same on every machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import oodnb

HEAVY = (
    "torch torchvision open_clip timm transformers matplotlib seaborn papermill sklearn scipy "
    "jinja2 jupyter_client ipywidgets nbformat"
).split()
TABLES = ["pandas", "pyarrow", "numpy"]
RUN = """
import contextlib, io, json, sys
{before}
with contextlib.redirect_stdout(io.StringIO()) as told:
    try:
        {call}
    except SystemExit:
        pass
print(json.dumps([sorted(m for m in sys.modules if "." not in m), told.getvalue()]))
"""


def _modules(call, tmp_path, before=""):
    "What a fresh process has imported after a call, and what the call has printed."
    environment = os.environ | {"PYTHONPATH": str(Path(oodnb.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(call=call, before=before)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    modules, told = json.loads(done.stdout)
    return set(modules), told


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "usage: oodnb"),
        (["list"], "zeroshot_imagenet"),
        (["list", "zeroshot_imagenet"], "scale: str"),
        (["status", "--out", "runs"], "Nothing has been run yet"),
        (["data", "list"], "ImageNet10"),
        (["run", "--help"], "usage: oodnb run"),
        (["doctor", "--help"], "usage: oodnb doctor"),
        (["report", "--help"], "usage: oodnb report"),
        (["score", "--help"], "usage: oodnb score"),
    ],
)
def test_what_only_shows_imports_no_library(words, shown, tmp_path):
    before = "from oodnb.command.main import main"
    modules, told = _modules(f"main({words!r})", tmp_path, before)
    assert shown in told
    assert not modules & {*HEAVY, *TABLES}


def test_a_table_needs_pandas_alone(tmp_path):
    before = "from oodnb.command.main import main"
    call = "main(['table', 'zeroshot_imagenet', '--accepted'])"
    modules, told = _modules(call, tmp_path, before)
    assert "zeroshot_imagenet, scale mini" in told and "pandas" in modules
    assert not modules & set(HEAVY)


def test_metrics_need_no_model(tmp_path):
    modules, told = _modules("print(oodnb.auroc([3.0, 2.0], [1.0, 2.5]))", tmp_path, "import oodnb")
    assert told.startswith("0.75") and not modules & {*HEAVY, "pandas"}


def test_the_pages_ten_lines_import_what_torch_and_open_clip_bring(tmp_path):
    "Nothing that draws, runs notebooks or fits trees comes with the names of the first page."
    call = "[getattr(oodnb, name) for name in oodnb.__all__]"
    modules, _ = _modules(call, tmp_path, "import oodnb")
    brought, _ = _modules("import open_clip, torchvision", tmp_path)
    assert {"torch", "pandas"} <= modules
    assert not (modules & set(HEAVY)) - brought
