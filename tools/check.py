#!/usr/bin/env python3
"""Is the house in order? Compares the package with its notebooks and the notebooks with the rules
of CONTRIBUTING.md.

    python tools/check.py [PROJECT]           one finding per line, with file and cell; exit code 1
    python tools/check.py --sizes [PROJECT]   how long exported cells are, chapter by chapter

Everything is exported and cleaned in a temporary copy: the checkout is only read.
"""

import argparse
import ast
import filecmp
import fnmatch
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

FORMATTED = ("nbs", "tests", "benchmarks", "tools", "setup.py")  # oodnb/ is written by nbdev
MAX_WIDTH = 100  # characters of a line of code, addresses not counted; ruff.toml says the same
MAX_LINES = 60  # of an exported cell, blank ones not counted
MAX_MEDIAN = 800  # characters of an exported cell
MAX_NINE_IN_TEN = 1_700  # nine of ten exported cells have fewer characters
MAX_BYTES = 300_000  # of a notebook
# rooms whose public functions say their types, as patterns of chapter/notebook; ("*",) is all
TYPED = ("*",)  # rooms whose public functions say their types
NOT_YET_TYPED: tuple = ()  # notebooks in them that do not have to
EXPORT = re.compile(r"^#\|\s*exporti?s?\b", re.M)
DEFAULT_EXP = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.M)
NUMBERED = re.compile(r"(\d+)_(.+)")
DOT = re.compile(r"\.")
ADDRESS = re.compile(r"\w+://\S+")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass
class Notebook:
    path: Path
    name: str  # relative to the project, as messages print it
    cells: list = field(default_factory=list)  # (index, kind, source, raw cell)
    module: str = ""  # as `default_exp` names it; "" exports nothing
    floor: tuple | None = None  # (number of the chapter, number in it)

    def code(self):
        return [(index, source) for index, kind, source, _ in self.cells if kind == "code"]

    def exported(self):
        """(index, source, syntax tree) of exported cells; the error in place of a missing tree."""
        for index, source in self.code():
            if EXPORT.search(source):
                try:
                    yield index, source, ast.parse(source)
                except SyntaxError as error:
                    yield index, source, error


def floor_of(place):
    """(chapter, number) from the path `2_models/06_backbone.ipynb` below nbs; None elsewhere."""
    numbers = [NUMBERED.match(part) for part in place.parts]
    return tuple(int(n[1]) for n in numbers) if len(numbers) == 2 and all(numbers) else None


def read_notebooks(root):
    """All notebooks that nbdev would read, and findings for those that cannot be read."""
    notebooks, findings = [], []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        place = path.relative_to(root / "nbs")
        if any(part.startswith((".", "_")) for part in place.parts):
            continue
        notebook = Notebook(path, path.relative_to(root).as_posix(), floor=floor_of(place))
        try:
            raw = json.loads(path.read_text("utf-8"))["cells"]
        except (ValueError, KeyError) as error:
            findings.append(f"{notebook.name}: not a notebook ({error})")
            continue
        notebook.cells = [
            (index, cell["cell_type"], "".join(cell["source"]), cell)
            for index, cell in enumerate(raw)
        ]
        exported_to = [m[1] for _, source in notebook.code() if (m := DEFAULT_EXP.search(source))]
        notebook.module = (exported_to or [""])[0]
        notebooks.append(notebook)
    return notebooks, findings


# -- floors


def check_numbers(notebooks):
    """Every module has a floor, and no floor is given twice."""
    chapters, floors, names = {}, {}, {}
    for notebook in notebooks:
        folder, name = notebook.path.parent, NUMBERED.fullmatch(notebook.path.name)
        if notebook.module and notebook.floor is None:
            yield (
                f"{notebook.name}: exports {notebook.module}, but lies in no chapter; "
                "nbs/<number>_<chapter>/<number>_<name>.ipynb says what it may import"
            )
        if notebook.floor is None:
            continue
        chapter, number = notebook.floor
        if (other := chapters.setdefault(chapter, folder)) != folder:
            chapters[chapter] = folder
            yield f"nbs/{folder.name}: has the number of nbs/{other.name}; give it another one"
        if (other := floors.setdefault((folder, number), notebook)) is not notebook:
            yield (
                f"{notebook.name}: has the number of {other.path.name}; "
                "numbers are the reading order of a chapter and are never used twice"
            )
        if (other := names.setdefault((folder, name[2]), notebook)) is not notebook:
            yield (
                f"{notebook.name}: differs from {other.path.name} by its number only; "
                "nbdev's index leaves numbers out, give it another name"
            )


def without_type_checking(tree):
    """All nodes of a piece of code but those below `if TYPE_CHECKING:`, which is never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from (inner for other in node.orelse for inner in ast.walk(other))
        else:
            yield node
            yield from without_type_checking(node)


def imported_names(tree, package):
    """Dotted names that a piece of code of `package` ("oodnb.measure") imports, early or late."""
    for node in without_type_checking(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parts if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func).endswith(("import_module", "__import__")):
                name = str(node.args[0].value)
                yield package + name if name.startswith(".") else name


def names_of_the_front_page(tree):
    """What a piece of code takes from `oodnb` itself: what is there stands on other floors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "oodnb" and not node.level:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "oodnb":
            if not node.attr.startswith("__"):
                yield node.attr


def is_method(notebook):
    return notebook.module.startswith("methods.")


def with_packages(names):
    """Importing a.b.c imports a and a.b as well."""
    return {
        name[:end] for name in names for end in [*(m.start() for m in DOT.finditer(name)), None]
    }


def check_imports(notebooks):
    """A module imports from lower floors only, so there are no circles; papers stay apart."""
    by_name = {f"oodnb.{n.module}".removesuffix(".__init__"): n for n in notebooks if n.module}
    for notebook in by_name.values():
        package, floor = f"oodnb.{notebook.module}".rpartition(".")[0], notebook.floor
        for index, _, tree in notebook.exported():
            if isinstance(tree, SyntaxError):
                continue
            where = f"{notebook.name} cell {index}: {notebook.module}"
            for name in sorted(set(names_of_the_front_page(tree))):
                yield (
                    f"{where} takes {name} from oodnb, the page for users; import it from its own "
                    "module (__version__: import oodnb), or nbdev-update carries it to another one"
                )
            for wanted in sorted(with_packages(imported_names(tree, package)) & by_name.keys()):
                other = by_name[wanted]
                if other is notebook or floor is None or other.floor is None:
                    continue
                if other.floor >= floor:
                    yield (
                        f"{where} {floor} imports upwards from {other.module} {other.floor}; "
                        "a module imports only lower floors, also inside functions"
                    )
                elif is_method(notebook) and is_method(other) and other.floor[0] != floor[0]:
                    yield f"{where} imports {other.module}; methods of two chapters stay apart"


# -- cells


def is_import_cell(tree):
    return not isinstance(tree, SyntaxError) and all(
        isinstance(node, IMPORTS) for node in tree.body
    )


def public_names(tree):
    """Functions and classes that a cell offers to others."""
    return {
        node.name
        for node in tree.body
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")
    }


def trailing_comments(source):
    """{line: comment} of the comments that follow code on their line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string
        for token in tokens
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }


def torn_comments(tree, source):
    """Comments of parameters, returned values and fields that do not stand where these begin, as a
    formatter leaves them that had to wrap the line. Help (docments) reads them only there, or on
    lines of their own above."""
    comments = trailing_comments(source)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            a = node.args
            known = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg, node.returns]
            begins = {part.lineno for part in known if part}
            if node.returns is None:  # "):  # what comes back" is for people, and stays
                begins.add(last_line_of_signature(node, source))
            lines = set(range(node.lineno, node.body[0].lineno)) - begins
        elif isinstance(node, ast.ClassDef):
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            lines = {line for part in fields for line in lines_behind(part)}
        else:
            continue
        yield from (comments[line] for line in sorted(lines & comments.keys()))


def last_line_of_signature(function, source):
    lines = source.splitlines()[: function.body[0].lineno - 1]
    code = [number for number, line in enumerate(lines, 1) if line.partition("#")[0].strip()]
    return code[-1] if code else function.lineno


def lines_behind(part):
    """Lines of a field where a comment is lost: all but the first if a bracket was put around its
    value or annotation, else only the last, since a table may have comments of its own."""
    first, last = part.lineno, part.end_lineno
    wrapped = max(part.annotation.lineno, getattr(part.value, "lineno", first)) > first
    return range(first + 1 if wrapped else max(last, first + 1), last + 1)


def check_cells(notebooks):
    """Length and make-up of exported cells."""
    for notebook in notebooks:
        for index, source, tree in notebook.exported():
            where = f"{notebook.name} cell {index}"
            if isinstance(tree, SyntaxError):
                yield f"{where}: does not parse ({tree})"
                continue
            if is_import_cell(tree):
                continue
            lines = sum(bool(line.strip()) for line in source.splitlines())
            if lines > MAX_LINES:
                yield (
                    f"{where}: exported cell of {lines} lines, at most {MAX_LINES} are allowed; "
                    "split it by what its pieces do"
                )
            if len(names := public_names(tree)) > 1:
                yield (
                    f"{where}: offers {', '.join(sorted(names))}; give each public function or "
                    "class a cell of its own"
                )
            if any(isinstance(node, IMPORTS) for node in tree.body):
                yield (
                    f"{where}: imports and code in one exported cell; "
                    "give imports a cell of their own"
                )
            for comment in torn_comments(tree, source):
                yield (
                    f"{where}: '{comment}' is not on the line where its parameter or field "
                    "begins, so help cannot read it; put it on a line of its own above"
                )


# -- types


def says_types(notebook):
    """Whether its public functions are held to say their types."""
    place = f"{notebook.path.parent.name}/{notebook.path.stem}"
    return place not in NOT_YET_TYPED and any(fnmatch.fnmatch(place, room) for room in TYPED)


def public_functions(tree):
    """(name, node) of the functions of a cell, and of the methods of its classes, that others call:
    no underscore in front, or the __init__ of a class."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, FUNCTIONS) and (
                    method.name == "__init__" or not method.name.startswith("_")
                ):
                    yield f"{node.name}.{method.name}", method


def untyped(function):
    """What of a function has no annotation: parameters but self and cls, "return"."""
    a = function.args
    known = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    bare = [p.arg for p in known if p and not p.annotation and p.arg not in ("self", "cls")]
    return bare + ["return"] * (function.returns is None)


def check_types(notebooks):
    """Public functions say their types: people, help and mypy read them."""
    for notebook in filter(says_types, notebooks):
        for index, _, tree in notebook.exported():
            if isinstance(tree, SyntaxError):
                continue
            for name, function in public_functions(tree):
                if bare := untyped(function):
                    yield (
                        f"{notebook.name} cell {index}: {name} has no annotation of "
                        f"{', '.join(bare)}; public functions say their types, and Any stands for "
                        "what only has to behave like something"
                    )


# -- sizes


def cell_sizes(notebooks):
    """{folder: characters of each exported cell}; import cells are not counted, indentation is."""
    sizes = {}
    for notebook in notebooks:
        for _, source, tree in notebook.exported():
            if not is_import_cell(tree):
                sizes.setdefault(notebook.path.parent.name, []).append(len(source))
    return sizes


def nine_in_ten(sizes):
    """The size that nine of ten cells stay under."""
    return sorted(sizes)[int(0.9 * len(sizes))]


def check_sizes(notebooks):
    """Exported cells can be read: half of them are short, nine in ten are not long."""
    if not (sizes := [size for chapter in cell_sizes(notebooks).values() for size in chapter]):
        return
    look = "python tools/check.py --sizes shows the chapters"
    if (middle := median(sizes)) > MAX_MEDIAN:
        yield (
            f"nbs: exported cells have a median of {middle:.0f} characters, "
            f"at most {MAX_MEDIAN} are allowed; {look}"
        )
    if (size := nine_in_ten(sizes)) >= MAX_NINE_IN_TEN:
        yield (
            f"nbs: one exported cell in ten has {size} characters or more, "
            f"nine in ten must stay under {MAX_NINE_IN_TEN}; {look}"
        )


def check_outputs(notebooks):
    """Size, saved errors, outputs of paper notebooks, cells that are never run."""
    for notebook in notebooks:
        size = notebook.path.stat().st_size
        if size > MAX_BYTES:
            yield (
                f"{notebook.name}: {size / 1000:.0f} kB, at most {MAX_BYTES // 1000} kB are "
                "allowed; make its figures smaller"
            )
        for index, kind, source, cell in notebook.cells:
            if kind != "code":
                continue
            where = f"{notebook.name} cell {index}"
            for output in cell["outputs"]:
                if output.get("output_type") == "error":
                    said = f"{output.get('ename')}: {str(output.get('evalue'))[:80]}"
                    yield f"{where}: saved error {said}; run the notebook again"
            made = cell["outputs"] or cell["execution_count"] is not None
            if notebook.path.parent.name == "papers" and made:
                yield (
                    f"{where}: a paper notebook is committed without outputs "
                    f"(jupyter nbconvert --clear-output --inplace {notebook.name})"
                )
            if re.search(r"^#\|\s*eval:\s*false", source, re.M) and "pip install" not in source:
                yield (
                    f"{where}: '#| eval: false' hides a cell from the tests; "
                    "only installation snippets may have it"
                )


# -- form


def check_width(root, notebooks):
    """No line of code is wider than the formatter was told; it does not split strings."""
    pieces = [(f"{n.name} cell {index}", source) for n in notebooks for index, source in n.code()]
    for start in FORMATTED:
        paths = [root / start] if start.endswith(".py") else sorted((root / start).rglob("*.py"))
        pieces += [
            (path.relative_to(root).as_posix(), path.read_text("utf-8"))
            for path in paths
            if path.is_file()
        ]
    for where, source in pieces:
        for number, line in enumerate(source.splitlines(), 1):
            if len(ADDRESS.sub("", line)) > MAX_WIDTH:
                yield (
                    f"{where} line {number}: {len(line)} characters, at most {MAX_WIDTH} are "
                    "allowed; split the string or put the comment above"
                )


def check_format(root):
    """Everything that people write has the form that `ruff format` gives it."""
    there = [name for name in FORMATTED if (root / name).exists()]
    command = [sys.executable, "-m", "ruff", "format", "--check", "--no-cache", "--quiet"]
    command += ["--output-format", "concise", *there]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        path = line.partition(":")[0]
        say = f"{path}: not in the form of the house; run ruff format {path}"
        yield say if ": unformatted:" in line else line
    if done.returncode and not done.stdout:
        yield f"{root}: ruff format failed: {done.stderr.strip()[-500:]}"


# -- the package


def run_nbdev(command, folder):
    """`nbdev-export` or `nbdev-clean` inside a folder; a finding if it failed."""
    home = dict(export="doclinks", clean="clean")[command]
    code = f"from nbdev.{home} import nbdev_{command} as run; run()"
    # nbdev-export does nothing under nbdev-test, which sets IN_TEST
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::SyntaxWarning", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )
    return [f"nbs: nbdev-{command} failed: {done.stderr.strip()[-500:]}"] if done.returncode else []


def files_below(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


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
        for name in sorted(there - here):
            yield f"oodnb/{name}: missing; run nbdev-export"
        for name in sorted(here - there - {"py.typed"}):  # which an editable install puts there
            yield f"oodnb/{name}: no notebook exports it; delete it"
        for name in sorted(there & here):
            if not filecmp.cmp(made / name, kept / name, shallow=False):
                yield (
                    f"oodnb/{name}: differs from its notebook; "
                    "run nbdev-export (or nbdev-update, if the module was edited)"
                )
        yield from run_nbdev("clean", copy)
        for notebook in notebooks:
            if not filecmp.cmp(copy / notebook.name, notebook.path, shallow=False):
                yield (
                    f"{notebook.name}: has metadata or outputs that nbdev-clean removes; "
                    "run nbdev-clean"
                )


def findings(root):
    """Everything that is wrong, one line each."""
    notebooks, found = read_notebooks(root)
    if not notebooks:
        return found or [f"{root / 'nbs'}: no notebooks; give the folder of the project"]
    rules = (check_numbers, check_imports, check_cells, check_types, check_sizes, check_outputs)
    for rule in rules:
        found += rule(notebooks)
    return [
        *found,
        *check_width(root, notebooks),
        *check_format(root),
        *check_copy(root, notebooks),
    ]


def table_of_sizes(notebooks):
    """Characters of exported cells, a line for each chapter and one for all."""
    chapters = cell_sizes(sorted(notebooks, key=lambda n: n.floor or (math.inf, math.inf)))
    chapters["all"] = [size for sizes in chapters.values() for size in sizes]
    yield f"{'characters of exported cells':28} {'cells':>6} {'median':>7} {'mean':>6} {'90 %':>6}"
    for name, sizes in chapters.items():
        numbers = f"{median(sizes):7.0f} {mean(sizes):6.0f} {nine_in_ten(sizes):6d}"
        yield f"{name:28} {len(sizes):6d} {numbers}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("project", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--sizes", action="store_true", help="how long exported cells are")
    given = parser.parse_args()
    root = given.project.resolve()
    if given.sizes:
        print("\n".join(table_of_sizes(read_notebooks(root)[0])))
        return False
    found = findings(root)
    count = len(read_notebooks(root)[0])
    order = f"house in order: {count} notebooks agree with the package and the rules"
    print("\n".join(found) if found else order)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
