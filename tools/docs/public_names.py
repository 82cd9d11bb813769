"""What a module offers, read from its source: signatures, the comment beside every parameter,
docstrings, and the notebook cell they come from.

Nothing is imported, so the reference needs no torch and cannot be changed by the machine it is made
on.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field

HEADER = re.compile(r"^# %% \S*?(nbs/\S+\.ipynb) #(\S+)$")
QUOTED = re.compile(r"'([^']*)'")
SPOKEN = ("__call__", "__len__", "__getitem__", "__iter__", "__enter__")


@dataclass
class Entry:
    """One public name."""

    name: str
    kind: str  # "function", "class", "value", "method" or "elsewhere"
    signature: str = ""
    doc: str = ""
    rows: list = field(
        default_factory=list
    )  # of parameters or fields: (names, type, default, comment)
    returns: tuple = ("", "")  # type, comment
    members: list = field(default_factory=list)  # entries of methods
    cell: str = ""  # id of the notebook cell
    home: str = ""  # of a name that is only passed on: its module


@dataclass
class Module:
    """One module of the package."""

    name: str  # oodnb.metrics
    notebook: str  # nbs/1_measure/02_metrics.ipynb
    doc: str
    entries: list


def comments(source):
    """Line number → the comment at its end, or else the lines of comment that stand alone above."""
    behind, alone, above = {}, [], {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").strip()
            if token.line[: token.start[1]].strip():
                behind[token.start[0]] = text
            else:
                alone.append(text)
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            if alone:
                above[token.start[0]] = " ".join(alone)
            alone = []
    return above | behind


def _defaults(arguments):
    positional = [*arguments.posonlyargs, *arguments.args]
    given = dict(
        zip(
            (a.arg for a in positional[len(positional) - len(arguments.defaults) :]),
            arguments.defaults,
        )
    )
    return given | {
        a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults) if d is not None
    }


def _arguments(arguments):
    """Every parameter in order: shown name, its node."""
    shown = [(a.arg, a) for a in (*arguments.posonlyargs, *arguments.args)]
    shown += [(f"*{arguments.vararg.arg}", arguments.vararg)] if arguments.vararg else []
    shown += [(a.arg, a) for a in arguments.kwonlyargs]
    shown += [(f"**{arguments.kwarg.arg}", arguments.kwarg)] if arguments.kwarg else []
    return [(name, node) for name, node in shown if name not in ("self", "cls")]


def _code(node):
    return ast.unparse(node) if node is not None else ""


def _type(node):
    """An annotation as text; names that had to be quoted stand without quotes."""
    text = _code(node)
    return text if "Literal[" in text else QUOTED.sub(r"\1", text)


def _header_end(node):
    """Line of the colon that ends the header of a function."""
    return (
        max(node.lineno, node.body[0].lineno - 1)
        if node.returns is None
        else node.returns.end_lineno
    )


def parameters(node, notes):
    """Rows of the parameter table; parameters on one line share its comment. And what comes
    back."""
    defaults, end, rows, last = _defaults(node.args), _header_end(node), [], None
    for name, argument in _arguments(node.args):
        default = defaults.get(name)
        line = max(argument.end_lineno, default.end_lineno if default is not None else 0)
        note = "" if line >= end else notes.get(line) or notes.get(argument.lineno, "")
        row = (name, _type(argument.annotation), _code(default), note)
        if note and line == last:
            rows[-1] = tuple(
                ", ".join(dict.fromkeys(filter(None, pair))) if k < 3 else note
                for k, pair in enumerate(zip(rows[-1], row))
            )
        else:
            rows.append(row)
        last = line
    return rows, (
        _type(node.returns),
        next(
            (
                notes[k]
                for k in range(end, node.body[0].lineno + (end == node.body[0].lineno))
                if k in notes
            ),
            "",
        ),
    )


def signature(node, name=None):
    """A header without comments, on several lines where it is long."""
    defaults, parts, keyword = _defaults(node.args), [], False
    for shown, argument in _arguments(node.args):
        if argument in node.args.kwonlyargs and not keyword and not node.args.vararg:
            parts.append("*")
        keyword = keyword or argument in node.args.kwonlyargs
        typed = f"{shown}: {_type(argument.annotation)}" if argument.annotation else shown
        value = _code(defaults.get(shown))
        parts.append(
            (f"{typed} = {value}" if argument.annotation else f"{typed}={value}")
            if value
            else typed
        )
    back = f" -> {_type(node.returns)}" if node.returns else ""
    line = f"{name or node.name}({', '.join(parts)}){back}"
    return (
        line
        if len(line) <= 88
        else f"{name or node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){back}"
    )


def _function(node, notes, kind="function", name=None):
    rows, returns = parameters(node, notes)
    decorators = [_code(d) for d in node.decorator_list]
    if "property" in decorators:
        return Entry(
            node.name, "property", name or node.name, ast.get_docstring(node) or "", [], returns
        )
    return Entry(
        node.name, kind, signature(node, name), ast.get_docstring(node) or "", rows, returns
    )


def _class(node, notes):
    fields = [
        (
            a.target.id,
            _type(a.annotation),
            _code(a.value),
            notes.get(a.end_lineno) or notes.get(a.lineno, ""),
        )
        for a in node.body
        if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)
    ]
    functions = [f for f in node.body if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    made = next((f for f in functions if f.name == "__init__"), None)
    dataclass_like = any("dataclass" in _code(d) for d in node.decorator_list)
    if made is not None:
        rows, head = parameters(made, notes)[0], signature(made, node.name)
    else:
        shown = (
            [
                f"{n}: {t}" + (f" = {v}" if v else "")
                for n, t, v, _ in fields
                if not n.startswith("_")
            ]
            if dataclass_like
            else []
        )
        line = f"{node.name}({', '.join(shown)})"
        rows, head = (
            fields,
            line
            if len(line) <= 88
            else f"{node.name}(\n" + "".join(f"    {s},\n" for s in shown) + ")",
        )
    if not (dataclass_like or made):
        head = (
            f"{node.name}({', '.join(_code(b) for b in node.bases)})" if node.bases else node.name
        )
    members = [
        _function(f, notes, "method", f"{node.name}.{f.name}")
        for f in functions
        if not f.name.startswith("_") or (f.name in SPOKEN and ast.get_docstring(f))
    ]
    return Entry(
        node.name,
        "class",
        head,
        ast.get_docstring(node) or "",
        [r for r in rows if not r[0].startswith("_")],
        members=members,
    )


def _value(node, name, source, notes):
    text = ast.get_source_segment(source, node) or name
    lines = text.splitlines()
    return Entry(
        name,
        "value",
        text if len(lines) <= 8 else "\n".join([*lines[:8], "..."]),
        notes.get(node.end_lineno, "") if len(lines) == 1 else "",
    )


def _cells(source):
    """Line number → (notebook, cell id) of the cell that begins there."""
    return {
        number: (m[1], m[2])
        for number, line in enumerate(source.splitlines(), 1)
        if (m := HEADER.match(line))
    }


def _passed_on(tree, package):
    """Names imported from modules of the package → the module."""
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        home = node.module
        if node.level:
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            home = f"{base}.{node.module}"
        if home.startswith("oodnb."):
            found |= {alias.asname or alias.name: home for alias in node.names}
    return found


def read_module(name, source):
    """A module's public names, or None if it has no list of them."""
    tree, notes, cells = ast.parse(source), comments(source), _cells(source)
    listed = [
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and _code(n.targets[0]) == "__all__"
    ]
    if not listed or not cells:
        return None
    passed_on, made = _passed_on(tree, name.rsplit(".", 1)[0]), {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            made[node.name] = _function(node, notes), node
        elif isinstance(node, ast.ClassDef):
            made[node.name] = _class(node, notes), node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        made[part.id] = _value(node, part.id, source, notes), node
    entries = []
    for public in listed[0]:
        if public in made:
            entry, node = made[public]
            entry.cell = next(
                (cells[k][1] for k in sorted(cells, reverse=True) if k <= node.lineno), ""
            )
        else:
            entry = Entry(public, "elsewhere", public, home=passed_on.get(public, ""))
        entries.append(entry)
    order = {public: node.lineno for public, (_, node) in made.items()}
    entries.sort(key=lambda e: order.get(e.name, 10**9))
    return Module(name, next(iter(cells.values()))[0], ast.get_docstring(tree) or "", entries)


def read_package(folder):
    """All modules of a package folder with public names, by name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if not path.name.startswith("_"):
            name = ".".join((folder.name, *path.relative_to(folder).with_suffix("").parts))
            if module := read_module(name, path.read_text("utf-8")):
                found[name] = module
    return found
