"""Runs the lessons of every notebook, each in a process forked from one that holds the libraries.

    python tools/lessons.py [--jobs 2] [--slowest 10] [NOTEBOOK OR FOLDER ...]

What a notebook leaves behind (figures, kept features, settings of libraries) ends with it: no
lesson stands on another's, and memory is what one notebook needs. nbdev's own loop runs them in as
many processes as there are workers, which at the end hold what all left: nine gigabytes each.
"""

import argparse
import importlib
import multiprocessing
import sys
import time
import warnings
from multiprocessing import connection
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
## what nearly every notebook loads, and what takes seconds to load
HEAVY = (
    *("torch", "torch._dynamo", "torchvision", "open_clip", "timm", "transformers", "pandas"),
    *("scipy.stats", "sklearn.metrics", "matplotlib.pyplot", "seaborn", "IPython", "papermill"),
)


def load_libraries():
    "Import what is heavy; a library that is missing is the notebook's to miss."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in HEAVY:
            try:
                importlib.import_module(name)
            except ImportError:
                pass
    import nbdev.test  # noqa: F401


def notebooks(paths):
    "The notebooks of files and folders, those of papers first: they take longest."
    found = [
        n for p in map(Path, paths) for n in (sorted(p.rglob("*.ipynb")) if p.is_dir() else [p])
    ]
    hidden = [n for n in found if any(part.startswith((".", "_")) for part in n.parts[-4:])]
    kept = [n.resolve() for n in found if n not in hidden]
    return sorted(kept, key=lambda n: (n.parent.name not in ("papers", "tutorials"), n))


def run(notebook):
    "In a process of its own: ends it with 0 where the lessons hold."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    skipped = get_config(ROOT).tst_flags
    skipped = skipped.split() if isinstance(skipped, str) else skipped
    held, _ = test_nb(notebook, skip_flags=skipped, basepath=ROOT, cell_timeout=None)
    sys.exit(not held)


def each_apart(chosen, jobs):
    "(notebook, whether its lessons hold, seconds) as they end, so many at a time."
    fork, waiting, running = multiprocessing.get_context("fork"), list(chosen), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            notebook = waiting.pop(0)
            child = fork.Process(target=run, args=(notebook,))
            child.start()
            running[child.sentinel] = notebook, child, time.perf_counter()
        for ended in connection.wait(list(running)):
            notebook, child, began = running.pop(ended)
            child.join()
            yield notebook, child.exitcode == 0, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=[ROOT / "nbs"], metavar="PATH")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
    parser.add_argument("--slowest", type=int, default=5, help="how many to name at the end")
    given = parser.parse_args()
    chosen = notebooks(given.paths)
    load_libraries()
    done = each_apart(chosen, given.jobs)
    results = list(tqdm(done, "lessons", len(chosen), unit="notebook", mininterval=10))
    failed = [str(n.relative_to(ROOT)) for n, held, _ in results if not held]
    slow = sorted(results, key=lambda result: -result[2])[: given.slowest]
    print("slowest: " + ", ".join(f"{n.stem} {seconds:.0f} s" for n, _, seconds in slow))
    print(f"lessons of {len(results)} notebooks, {len(failed)} failed")
    if failed:
        sys.exit("\n".join(["Lessons failed in:", *failed]))


if __name__ == "__main__":
    main()
