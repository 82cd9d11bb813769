"""Run the tests on other Pythons, and with the lowest and the newest versions of the requirements:
once for a release. `python tools/matrix.py` takes what it finds on this machine, makes an
environment for each, and writes runs/matrix/report.md.

    python tools/matrix.py --python 3.13 --versions lowest --tests tests/test_kept.py
"""

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "matrix"


def requirements():
    """The requirements of the package and of its tests, from settings.ini."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    told = parser["DEFAULT"]
    return f"{told['requirements']} {told['dev_requirements']} {told['blip_requirements']}".split()


def lowest(requirement):
    """`torch>=2.6` as `torch==2.6.*`: the first series that is allowed."""
    found = re.match(r"^([\w.\[\]-]+)>=([\d.]+)", requirement)
    return f"{found[1]}=={found[2]}.*" if found else requirement


def pythons(wanted):
    """Version -> the interpreter that is really of that version."""
    found = {}
    for version in wanted:
        for name in (f"python{version}", "python3", sys.executable):
            path = shutil.which(name)
            code = "import sys; print('%d.%d' % sys.version_info[:2])"
            done = path and subprocess.run([path, "-c", code], capture_output=True, text=True)
            if done and done.stdout.strip() == version:
                found[version] = path
                break
    return found


def environment(python, version, versions):
    """(interpreter of an environment, what pip said when it failed)."""
    folder = FOLDER / f"{version}-{versions}"
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    asked = requirements()
    asked = list(map(lowest, asked)) if versions == "lowest" else ["--upgrade", *asked]
    install = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*install, *asked], capture_output=True, text=True)
    if done.returncode == 0:
        words = [*install, "--no-deps", "-e", ROOT]
        done = subprocess.run(words, capture_output=True, text=True)
    return own, done.stderr.strip() if done.returncode else ""


def tested(own, tests):
    """(exit code, the last lines)."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    home = {"OODNB_HOME": str(FOLDER / "home"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    words = [own, "-m", "pytest", "-q", "-rs", "-n", "2", "--dist", "loadfile", *tests]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | offline | home, capture_output=True, text=True
    )
    return done.returncode, "\n".join(done.stdout.splitlines()[-12:])


def report(rows):
    lines = ["# The tests on other Pythons and versions", ""]
    lines += ["| Python | versions | result | minutes |", "| --- | --- | --- | ---: |"]
    lines += [f"| {v} | {kind} | {result} | {m:.1f} |" for v, kind, result, m, _ in rows]
    for version, kind, result, _, said in rows:
        lines += ["", f"## Python {version}, {kind}: {result}", "", "```", said, "```"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "report.md").write_text("\n".join(lines) + "\n")
    return FOLDER / "report.md"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="versions (default: 3.11 and 3.13)")
    parser.add_argument("--versions", nargs="+", default=["lowest", "newest"])
    parser.add_argument("--tests", nargs="*", default=[], help="default: all")
    asked = parser.parse_args()
    wanted, rows = asked.python or ["3.11", "3.13"], []
    found = pythons(wanted)
    for version in wanted:
        if version not in found:
            rows.append((version, "any", "not found on this machine", 0, ""))
            continue
        for versions in asked.versions:
            begun = time.monotonic()
            own, problem = environment(found[version], version, versions)
            code, said = (2, problem) if problem else tested(own, asked.tests)
            result = "not installed" if problem else "passed" if code == 0 else "failed"
            rows.append((version, versions, result, (time.monotonic() - begun) / 60, said[-3000:]))
            report(rows)
            print(f"Python {version}, {versions}: {result}", flush=True)
    print(report(rows))
    sys.exit(any(row[2] != "passed" for row in rows))


if __name__ == "__main__":
    main()
