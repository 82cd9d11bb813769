"""Each write, fsync, rename, open and lock of a job fails once, inside the C library, so that what
Rust and Arrow write counts too. A tenth of them here, all in `make soak`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "faults"
JOBS = ["extraction", "training", "prepare", "results"]


def run_faults(folder, every, *jobs):
    """The report of tests/faults/jobs.py; None where the shim cannot be built."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    shim, report = folder / "shim.so", folder / "report.json"
    words = ["-shared", "-fPIC", "-O1", "-o", shim, HERE / "shim.c", "-ldl"]
    subprocess.run([compiler, *words], check=True)
    environment = os.environ | {"LD_PRELOAD": str(shim), "OODNB_HOME": str(folder / "home")}
    command = [sys.executable, HERE / "jobs.py", str(every), report, *jobs]
    subprocess.run(list(map(str, command)), env=environment, check=True, timeout=3600)
    return json.loads(report.read_text())


def test_every_call_to_the_system_may_fail(tmp_path):
    report = run_faults(tmp_path, 10, *JOBS)
    if report is None:
        pytest.skip("needs Linux and a C compiler (Debian: apt-get install gcc)")
    assert report["tried"] > 40 and report["found"] == []
