"""Faults planted one by one, to see whether a lesson or a test notices.

    python tools/mutate.py                   what is not marked "long"; exit code 1: one survives
    python tools/mutate.py --all             all of tests/mutations, trainings too (an hour or more)
    python tools/mutate.py --only ID ...     these
    python tools/mutate.py --chapter locoop  those of tests/mutations/locoop.json

A mutation is a change of a few characters: {"id", "module", "old", "new", "tests"}. It is made in a
copy of the project, in the package and in the notebook that exports it; then the lessons of that
notebook run, and after them the named tests. A fault that nothing notices is a survivor. What is
run must pass without the fault, or nothing would be shown by its failing.
"""

import argparse
import json
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("oodnb", "nbs", "tests", "tools", "settings.ini", "pyproject.toml", "setup.py")
LINKED = ("data", "figures", "benchmarks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
SECONDS = 600  # a run that takes longer has noticed
# what takes long to import and holds no fault: loaded once, every run is a fork of that process
PRELOADED = """torch torchvision open_clip timm pandas pyarrow.parquet scipy.stats seaborn
matplotlib.pyplot safetensors.torch ipywidgets nbdev.test fastcore.test""".split()
OFFLINE = {
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "CUDA_VISIBLE_DEVICES": "",
}


def mutations(chapter=None):
    "All faults, file by file."
    found = []
    for path in sorted((ROOT / "tests" / "mutations").glob("*.json")):
        if chapter in (None, path.stem):
            found += [{"tests": [], **one} for one in json.loads(path.read_text("utf-8"))]
    return found


@cache
def notebook_of(module):
    "The notebook that exports a module, relative to the project."
    wanted = f"#| default_exp {module.replace('/', '.')}"
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if "".join(cell["source"]).splitlines()[:1] == [wanted]:
                return path.relative_to(ROOT)
    raise LookupError(f"No notebook exports {module!r}.")


def _exported(notebook):
    return [c for c in notebook["cells"] if "".join(c["source"]).startswith("#| export")]


def places(mutation, root=ROOT):
    "(times that the text stands in the module, in exported cells of its notebook)."
    module = (root / "oodnb" / f"{mutation['module']}.py").read_text("utf-8")
    notebook = json.loads((root / notebook_of(mutation["module"])).read_text("utf-8"))
    cells = ["".join(c["source"]) for c in _exported(notebook)]
    return module.count(mutation["old"]), sum(c.count(mutation["old"]) for c in cells)


def _written(root, mutation, old, new):
    path = root / "oodnb" / f"{mutation['module']}.py"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    path = root / notebook_of(mutation["module"])
    notebook = json.loads(path.read_text("utf-8"))
    for cell in _exported(notebook):
        cell["source"] = "".join(cell["source"]).replace(old, new).splitlines(keepends=True)
    path.write_text(json.dumps(notebook), "utf-8")


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


def _at_home(root, said):
    "This process belongs to a copy of the project, and writes into a file."
    os.chdir(root)
    sys.path.insert(0, root)
    os.environ |= {"PYTHONPATH": root, "OODNB_HOME": str(Path(root) / "home")}
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _lessons(root, notebook, said):
    _at_home(root, said)
    from nbdev.config import get_config
    from nbdev.test import test_nb

    flags = get_config().tst_flags
    skipped = flags.split() if isinstance(flags, str) else list(flags)
    passes, _ = test_nb(Path(root) / notebook, skip_flags=skipped, force_flags=[])
    sys.stderr.flush()
    os._exit(0 if passes else 1)


def _tests(root, target, said):
    _at_home(root, said)
    import pytest

    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", target])
    sys.stdout.flush()
    os._exit(int(code))


class Project:
    "A copy of the project in which one fault at a time is planted."

    def __init__(self, folder):
        self.root = Path(folder)
        for name in COPIED:
            source, target = ROOT / name, self.root / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        for name in LINKED:
            (self.root / name).symlink_to(ROOT / name)
        self.kept = {}

    def plant(self, mutation):
        for name in (f"oodnb/{mutation['module']}.py", str(notebook_of(mutation["module"]))):
            self.kept[name] = (self.root / name).read_bytes()
        _written(self.root, mutation, mutation["old"], mutation["new"])

    def restore(self):
        for name, content in self.kept.items():
            (self.root / name).write_bytes(content)
        self.kept = {}

    def run(self, target):
        "Whether the lessons of a notebook, or some tests, pass; and the end of what they said."
        shutil.rmtree(self.root / "home", ignore_errors=True)  # nothing kept hides a fault
        work = _lessons if target.endswith(".ipynb") else _tests
        said = self.root / "said.txt"
        process = FORKS.Process(target=work, args=(str(self.root), target, str(said)))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            return False, f"took more than {SECONDS} s"
        lines = [line for line in said.read_text("utf-8").splitlines() if line.strip()]
        return process.exitcode == 0, lines[-1] if lines else ""


class Bench:
    "Copies for several workers, and which targets pass without a fault."

    def __init__(self, folder, jobs):
        self.free, self.sound = queue.Queue(), {}
        self.turns, self.lock = defaultdict(Lock), Lock()
        for i in range(jobs):
            self.free.put(Project(Path(folder) / str(i)))

    def _passes(self, project, target):
        with self.lock:
            turn = self.turns[target]
        with turn:  # two workers on one notebook need to see it pass once
            if target not in self.sound:
                self.sound[target] = project.run(target)
        return self.sound[target]

    def tried(self, mutation):
        "(mutation, what noticed it or None, seconds). `RuntimeError` for what fails anyway."
        project, begun = self.free.get(), time.perf_counter()
        try:
            for target in (str(notebook_of(mutation["module"])), *mutation["tests"]):
                passes, said = self._passes(project, target)
                if not passes:
                    raise RuntimeError(f"{target} fails without a fault: {said}")
                project.plant(mutation)
                survives, _ = project.run(target)
                project.restore()
                if not survives:
                    return mutation, target, time.perf_counter() - begun
            return mutation, None, time.perf_counter() - begun
        finally:
            project.restore()
            self.free.put(project)


def main():
    os.environ.update(OFFLINE)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="these faults")
    parser.add_argument("--all", action="store_true", help="also those whose lessons take long")
    parser.add_argument("--chapter", help="the faults of one file of tests/mutations")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    asked = parser.parse_args()
    chosen = [m for m in mutations(asked.chapter) if not asked.only or m["id"] in asked.only]
    if not (asked.all or asked.only or asked.chapter):
        chosen = [m for m in chosen if not m.get("long")]
    unknown = set(asked.only) - {m["id"] for m in chosen}
    if unknown or not chosen:
        parser.error(f"no fault is called {', '.join(sorted(unknown)) or 'anything here'}")
    stale = [m["id"] for m in chosen if places(m) != (1, 1)]
    if stale:
        parser.error(f"the text of {', '.join(stale)} stands nowhere, or more than once")
    survivors = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.jobs) as pool:
        for one, noticed, seconds in pool.map(Bench(folder, asked.jobs).tried, chosen):
            print(f"{noticed or 'SURVIVES':55} {one['id']} ({seconds:.0f} s)", flush=True)
            survivors += [] if noticed else [one["id"]]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults were noticed.")
    if survivors:
        print(f"Nothing noticed {', '.join(survivors)}.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
