#!/usr/bin/env python3
"""Is the house in order? Compares the package with its notebooks and the notebooks with the rules of CONTRIBUTING.md.

    python tools/check.py [PROJECT]      prints one finding per line, with file and cell; exit code 1 if there is any

Everything is exported and cleaned in a temporary copy: the checkout is only read.
"""

import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

MAX_LINES = 60
MAX_BYTES = 300_000
MAY_IMPORT_EACH_OTHER = {("methods.locoop", "methods.coop")}
EXPORT = re.compile(r"^#\|\s*exporti?s?\b", re.M)
DEFAULT_EXP = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.M)


@dataclass
class Notebook:
    path: Path
    name: str  # relative to the project, as messages print it
    cells: list = field(default_factory=list)  # (index, kind, source, raw cell)
    module: str = ""
    number: int | None = None

    def exported(self):
        return [(index, source) for index, kind, source, _ in self.cells if kind == "code" and EXPORT.search(source)]


def read_notebooks(root):
    """All notebooks that nbdev would read, and findings for those that cannot be read."""
    notebooks, findings = [], []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if any(part.startswith((".", "_")) for part in path.relative_to(root / "nbs").parts):
            continue
        notebook = Notebook(path, path.relative_to(root).as_posix())
        try:
            raw = json.loads(path.read_text("utf-8"))["cells"]
        except (ValueError, KeyError) as error:
            findings.append(f"{notebook.name}: not a notebook ({error})")
            continue
        notebook.cells = [(index, cell["cell_type"], "".join(cell["source"]), cell) for index, cell in enumerate(raw)]
        exported_to = [match[1] for _, kind, source, _ in notebook.cells if kind == "code" and (match := DEFAULT_EXP.search(source))]
        number = re.match(r"(\d+)_", path.name)
        notebook.module, notebook.number = (exported_to or [""])[0], int(number[1]) if number else None
        notebooks.append(notebook)
    return notebooks, findings


def imported_modules(tree):
    """Modules of this package that a piece of code imports, written as in `default_exp`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("oodnb.") for alias in node.names if alias.name.startswith("oodnb."))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if node.module == "oodnb":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("oodnb."):
                base = node.module.removeprefix("oodnb.")
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def check_cells(notebooks):
    """Length and make-up of exported cells, direction of imports, numbers."""
    by_module, by_number = {n.module: n for n in notebooks if n.module}, {}
    for notebook in by_module.values():
        if notebook.number is None:
            yield f"{notebook.name}: exports {notebook.module}, but its name has no number; the number says what it may import"
        elif (other := by_number.setdefault(notebook.number, notebook)) is not notebook:
            yield f"{notebook.name}: has the number of {other.name}; numbers are the reading order and are never used twice"
        for index, source in notebook.exported():
            where = f"{notebook.name} cell {index}"
            lines = [line for line in source.splitlines() if line.strip()]
            if len(lines) > MAX_LINES:
                yield f"{where}: exported cell of {len(lines)} lines, at most {MAX_LINES} are allowed; split it where the explanation would"
            try:
                tree = ast.parse(source)
            except SyntaxError as error:
                yield f"{where}: does not parse ({error})"
                continue
            if {isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body} == {True, False}:
                yield f"{where}: imports and code in one exported cell; give imports a cell of their own"
            for wanted in sorted(set(imported_modules(tree)) & by_module.keys()):
                target = by_module[wanted]
                if notebook.number is not None and target.number is not None and target.number >= notebook.number:
                    yield f"{where}: {notebook.module} ({notebook.number}) imports upwards from {wanted} ({target.number}); a module imports only smaller numbers"
                elif notebook.module.startswith("methods.") and wanted.startswith("methods.") and (notebook.module, wanted) not in MAY_IMPORT_EACH_OTHER:
                    yield f"{where}: {notebook.module} imports {wanted}; methods do not know each other"


def check_outputs(notebooks):
    """Size, saved errors, outputs of paper notebooks, cells that are never run."""
    for notebook in notebooks:
        size = notebook.path.stat().st_size
        if size > MAX_BYTES:
            yield f"{notebook.name}: {size / 1000:.0f} kB, at most {MAX_BYTES // 1000} kB are allowed; make its figures smaller"
        for index, kind, source, cell in notebook.cells:
            if kind != "code":
                continue
            where = f"{notebook.name} cell {index}"
            for output in cell["outputs"]:
                if output.get("output_type") == "error":
                    yield f"{where}: saved error {output.get('ename')}: {str(output.get('evalue'))[:80]}; run the notebook again"
            if notebook.path.parent.name == "papers" and (cell["outputs"] or cell["execution_count"] is not None):
                yield f"{where}: a paper notebook is committed without outputs (jupyter nbconvert --clear-output --inplace {notebook.name})"
            if re.search(r"^#\|\s*eval:\s*false", source, re.M) and "pip install" not in source:
                yield f"{where}: '#| eval: false' hides a cell from the tests; only installation snippets may have it"


def run_nbdev(command, folder):
    """`nbdev_export` or `nbdev_clean` inside a folder; a finding if it failed."""
    code = f"from nbdev.{dict(export='doclinks', clean='clean')[command]} import nbdev_{command} as run; run()"
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}  # nbdev_export does nothing under nbdev_test
    done = subprocess.run([sys.executable, "-W", "ignore::SyntaxWarning", "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    return [f"nbs: nbdev_{command} failed: {done.stderr.strip()[-500:]}"] if done.returncode else []


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"}


def check_copy(root, notebooks):
    """What a fresh export and a cleaning of all notebooks would change."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for name in ("settings.ini", "pyproject.toml"):
            if (root / name).is_file():
                shutil.copy(root / name, copy / name)
        for notebook in notebooks:
            (copy / notebook.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(notebook.path, copy / notebook.name)
        if failed := run_nbdev("export", copy):
            yield from failed
            return
        made, kept = copy / "oodnb", root / "oodnb"
        there, here = files_below(made), files_below(kept)
        yield from (f"oodnb/{name}: missing; run nbdev_export" for name in sorted(there - here))
        yield from (f"oodnb/{name}: no notebook exports it; delete it" for name in sorted(here - there))
        for name in sorted(there & here):
            if not filecmp.cmp(made / name, kept / name, shallow=False):
                yield f"oodnb/{name}: differs from its notebook; run nbdev_export (or nbdev_update, if the module was edited)"
        yield from run_nbdev("clean", copy)
        for notebook in notebooks:
            if not filecmp.cmp(copy / notebook.name, notebook.path, shallow=False):
                yield f"{notebook.name}: has metadata or outputs that nbdev_clean removes; run nbdev_clean"


def findings(root):
    """Everything that is wrong, one line each."""
    notebooks, found = read_notebooks(root)
    if not notebooks:
        return found or [f"{root / 'nbs'}: no notebooks; give the folder of the project"]
    return [*found, *check_cells(notebooks), *check_outputs(notebooks), *check_copy(root, notebooks)]


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    found = findings(root)
    print("\n".join(found) if found else f"house in order: {len(read_notebooks(root)[0])} notebooks agree with the package and the rules")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
