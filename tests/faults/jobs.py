"""Jobs in which every call to the system fails once: after it there is a named error or the right
result, nothing half under a real name, and the same command gives the same bytes as ever.

`python tests/faults/jobs.py EVERY OUT [JOB ...]` with the shim preloaded; EVERY: each how-manieth
call fails, 1 is all of them."""

import ctypes
import errno
import json
import os
import shutil
import sys
import tarfile
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from oodnb.backbones import load_backbone
from oodnb.benchmark import load_scores, save_scores, score_table
from oodnb.data import catalogue
from oodnb.data.catalogue import Archive, Entry, Split
from oodnb.data.fewshot import few_shot
from oodnb.data.prepare import prepare
from oodnb.datasets import load_dataset
from oodnb.features import extract
from oodnb.methods.coop import CoOpSettings, fit_coop
from oodnb.running.state import write_json

KINDS = ("write", "fsync", "rename", "open", "lock")
ERRORS = {
    "write": ("ENOSPC", "EIO", "EINTR"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC"),
    "open": ("ENOSPC", "EIO", "EINTR"),
    "lock": ("ENOLCK", "EINTR", "EIO"),
}
# what a user cannot do anything with
RAW = (KeyError, AttributeError, TypeError, NameError, AssertionError, IndexError)


@cache
def backbone():
    return load_backbone("tiny-vit")


@cache
def picture_folder():
    folder = Path(tempfile.mkdtemp()) / "pictures"
    for name, n in (("a", 3), ("b", 3)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = np.random.default_rng(i + n).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{i}.png")
    return folder


@cache
def pictures():
    return load_dataset(picture_folder())


def extraction(home):
    seen = extract(
        backbone(), pictures(), home / "cache", batch_size=2, chunk=2, workers=0, progress=False
    )
    return seen.image_features.clone()


def training(home):
    settings = CoOpSettings(epochs=2, views=1, length=2)
    few = few_shot(pictures(), 1)
    fitted = fit_coop(
        backbone(), few, settings, folder=home / "run", cache=False, workers=0, progress=False
    )
    return fitted.vectors.detach().clone()


@cache
def archive():
    shelf = Path(tempfile.mkdtemp())
    with tarfile.open(shelf / "zoo.tar", "w") as tar:
        for path in sorted(picture_folder().rglob("*.png")):
            tar.add(path, f"Zoo/{path.parent.name}-{path.name}")
    return shelf


def preparing(home):
    root = home / "root"
    root.mkdir(parents=True, exist_ok=True)
    facts = dict(url=None, page="the keeper", size=None, checksums=(), into=".", unpack=True)
    zoo = Archive(name="zoo.tar", **facts)
    split = Split("test", 6, 0, ("Zoo",), "*.png", {})
    entry = Entry("Zoo", "ood", "none", "https://e.org", "folder", (zoo,), {"test": split}, "", "")
    before, known = catalogue.entries, dict(catalogue.entries())
    catalogue.entries = lambda: known | {"Zoo": entry}
    try:
        prepare("Zoo", root=root, source=archive(), say=lambda line: None, progress=False)
    finally:
        catalogue.entries = before
    return sorted(p.relative_to(root).as_posix() for p in (root / "Zoo").rglob("*"))


def results(home):
    home.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    table = score_table({"mcm": rng.random(40)}, {"o": {"mcm": rng.random(40)}}, id_name="i")
    save_scores(table, home / "scores.parquet")
    write_json(home / "facts.json", {"a": list(range(300))})
    return load_scores(home / "scores.parquet")


# a state after the first epoch, a record of what has begun: whole, and not yet the last one
GROWING = ("training.safetensors", ".oodnb/Zoo.json", ".oodnb/Zoo.parquet")
JOBS = {"extraction": extraction, "training": training, "prepare": preparing, "results": results}


def tree(folder):
    """Every file under a real name, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a.equals(b) if isinstance(a, pd.DataFrame) else a == b


class Faults:
    def __init__(self, root):
        self.root, self.library, self.found, self.tried = root, ctypes.CDLL(None), [], 0
        self.library.fault_disarm.restype = ctypes.c_long

    def calls(self, job, kind):
        home = self.fresh()
        self.library.fault_arm(KINDS.index(kind), ctypes.c_long(0), 0, bytes(home))
        value = job(home)
        return self.library.fault_disarm(), value, tree(home)

    def fresh(self):
        shutil.rmtree(self.root / "home", ignore_errors=True)
        return self.root / "home"

    def once(self, job, kind, n, code, value, files):
        """What is wrong about one fault, or None."""
        home = self.fresh()
        number = ctypes.c_long(n)
        self.library.fault_arm(KINDS.index(kind), number, getattr(errno, code), bytes(home))
        try:
            made = job(home)
        except Exception as error:
            made = None
            if isinstance(error, RAW) or len(str(error)) < 12:
                return f"{type(error).__name__}: {error}"
        finally:
            self.library.fault_disarm()
        if made is not None and not same(made, value):
            return "another result"
        left = tree(home) if home.is_dir() else {}
        half = [
            name
            for name, data in left.items()
            if name in files and data != files[name] and not name.endswith(GROWING)
        ]
        if half:
            return f"half or other files under real names: {half}"
        try:
            again = job(home)
        except Exception as error:
            return f"cannot go on: {type(error).__name__}: {error}"
        if not same(again, value):
            return "another result of the second attempt"
        if (after := tree(home)) != files:
            odd = {name for name in after.keys() | files if after.get(name) != files.get(name)}
            return f"other files after the second attempt: {sorted(odd)}"
        return None

    def all(self, name, every):
        job = JOBS[name]
        for kind in KINDS:
            count, value, files = self.calls(job, kind)
            for k, code in enumerate(ERRORS[kind]):
                for n in range(1 + k % every, count + 1, every):
                    self.tried += 1
                    if wrong := self.once(job, kind, n, code, value, files):
                        self.found.append([name, kind, n, count, code, wrong])


def main(every, out, *names):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    os.environ["OODNB_HOME"] = str(root / "own")
    pictures(), backbone(), archive()
    faults = Faults(root)
    try:
        for name in names or JOBS:
            faults.all(name, int(every))
    except Exception:
        faults.found.append(["driver", traceback.format_exc()])
    Path(out).write_text(json.dumps({"tried": faults.tried, "found": faults.found}, indent=1))
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
