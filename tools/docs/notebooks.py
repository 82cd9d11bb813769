"""Notebooks as HTML: prose, code in colour, saved outputs; exported cells lead to the reference,
paper notebooks show their accepted results."""

import ast
import base64
import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from prose import colour, plain

DIRECTIVE = re.compile(r"^#\|\s*(\w+).*\n?", re.M)
PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
SHOWN = 24  # tables of accepted rows with more lines begin folded


@dataclass
class Notebook:
    """A notebook on disk, and what the contents say about it."""

    path: str  # below the root: nbs/1_measure/02_metrics.ipynb
    cells: list = field(default_factory=list)
    title: str = ""
    blurb: str = ""

    @property
    def stem(self):
        return self.path.rsplit("/", 1)[-1].removesuffix(".ipynb")

    @property
    def number(self):
        found = re.match(r"(\d+)_", self.stem)
        return int(found[1]) if found else None


def source(cell):
    return "".join(cell["source"])


def read_notebook(root, path):
    """Cells, title and blurb; the first heading is the title, the first quotation the blurb."""
    cells = json.loads((root / path).read_text("utf-8"))["cells"]
    words = "\n".join(source(c) for c in cells if c["cell_type"] == "markdown")
    title, blurb = re.search(r"^# (.+)$", words, re.M), re.search(r"^> (.+)$", words, re.M)
    return Notebook(
        path, cells, title[1].strip() if title else path, blurb[1].strip() if blurb else ""
    )


def need_of(notebook, cell_id, public):
    """The Markdown before a cell: why it is there, with its formula. Cells that export helpers only
    (ids not in `public`) do not interrupt it."""
    at = next((i for i, c in enumerate(notebook.cells) if c.get("id") == cell_id), 0)
    found = []
    for cell in reversed(notebook.cells[:at]):
        if cell["cell_type"] == "markdown" and not source(cell).lstrip().startswith("#"):
            found.append(source(cell))
        elif (
            cell["cell_type"] == "markdown"
            or cell.get("id") in public
            or not DIRECTIVE.match(source(cell))
        ):
            break
    return "\n\n".join(reversed(found))


def only_imports(code):
    """Whether a cell does nothing but import; readers look such a cell up and do not read it."""
    try:
        return {
            isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body
        } == {True}
    except SyntaxError:
        return False


def _text(value):
    return "".join(value) if isinstance(value, list) else value


class Writer:
    """Writes the cells of one notebook; pictures become files beside the page."""

    def __init__(self, notebook, prose, names_of, folder, folded):
        self.notebook, self.prose, self.names_of = notebook, prose, names_of
        self.folder, self.folded, self.pictures = folder, folded, 0

    def cell(self, cell):
        if cell["cell_type"] == "markdown":
            return self.prose(source(cell))
        return self.code(cell) if cell["cell_type"] == "code" else ""

    def code(self, cell):
        kinds = set(DIRECTIVE.findall(source(cell)))
        if kinds & {"default_exp", "hide"}:
            return ""
        code = DIRECTIVE.sub("", source(cell)).strip("\n")
        if re.fullmatch(r"_all_ = \[[^]]*\]\s*(#.*)?", code):  # a word to nbdev
            return ""
        outputs = "".join(filter(None, (self.output(o, code) for o in cell.get("outputs", []))))
        made = {"parameters"} <= set(cell["metadata"].get("tags", []))
        listed = f'<pre class="hl">{colour(code)}</pre>' if code.strip() else ""
        names = "".join(
            f'<a href="{link}"><code>{html.escape(name)}</code></a>'
            for name, link in self.names_of.get(cell.get("id"), [])
        )
        note = (
            f'<p class="exports">in the package: {names}</p>'
            if names
            else '<p class="note">Parameters: <code>oodnb run</code> fills them in.</p>'
            if made
            else ""
        )
        if listed and not made and (self.folded or only_imports(code)):
            lines = code.strip().splitlines()
            first = "imports" if only_imports(code) else html.escape(lines[0][:90])
            count = f" … <small>{len(lines)} lines</small>" if len(lines) > 1 else ""
            listed = f'<details class="code"><summary>{first}{count}</summary>{listed}</details>'
        kind = " exported" if kinds & {"export", "exporti", "exports"} else ""
        shown = f"<div class=output>{outputs}</div>" if outputs else ""
        return (
            f'<div class="cell{kind}" id="cell-{cell.get("id", "")}">{note}{listed}{shown}</div>\n'
        )

    def output(self, output, code):
        if output["output_type"] == "stream":
            return f'<pre class="{output["name"]}">{html.escape(_text(output["text"]))}</pre>'
        data = output.get("data", {})
        if picture := self.picture(data, code):
            return picture
        if "text/html" in data:
            table = re.sub(r"<style.*?</style>", "", _text(data["text/html"]), flags=re.S).replace(
                ' border="1"', ""
            )
            return f'<div class="wide">{re.sub(r" style=.text-align: right;.", "", table)}</div>'
        if "text/markdown" in data:
            return self.prose(_text(data["text/markdown"]))
        if any("widget-view" in kind for kind in data):
            return '<p class="note">A widget: open this notebook in JupyterLab to use it.</p>'
        return (
            f"<pre>{html.escape(_text(data['text/plain']))}</pre>" if "text/plain" in data else ""
        )

    def picture(self, data, code):
        """The smallest of the offered forms, as a file."""
        offered = {
            k: _text(data[k]).encode() if "svg" in k else base64.b64decode(_text(data[k]))
            for k in PICTURES
            if k in data
        }
        if not offered:
            return ""
        kind, content = min(offered.items(), key=lambda item: len(item[1]))
        self.pictures += 1
        name = f"{self.notebook.stem}_{self.pictures}.{PICTURES[kind]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)
        last = plain(code.strip().splitlines()[-1])[:120] if code.strip() else "output"
        return (
            f'<img src="{self.folder.name}/{name}" '
            f'alt="{html.escape("output of: " + last, quote=True)}" loading="lazy">'
        )


def figures_of(root, notebook):
    """Accepted pictures of a notebook: figures/<its name>_*.svg|png."""
    return sorted(
        p.relative_to(root).as_posix()
        for p in (root / "figures").glob(f"{notebook.stem}_*.*")
        if p.suffix in (".svg", ".png", ".jpg")
    )


def figures_as_markdown(notebook, figures):
    depth = "../" * notebook.path.count("/")
    lines = []
    for path in figures:
        what = Path(path).stem.removeprefix(f"{notebook.stem}_").replace("_", " ").replace("-", " ")
        lines.append(
            f'<figure><a href="{depth}{path}"><img src="{depth}{path}" '
            f'alt="{notebook.stem}: {what}" '
            f'loading="lazy"></a><figcaption>{what}</figcaption></figure>'
        )
    return (
        "<div "
        f'class="figures{"" if "/papers/" in notebook.path else " small"}">{"".join(lines)}</div>'
    )


def rows_as_html(blocks, prose):
    """The numbers of an accepted run as `oodnb report` lays them out: headings of tables, tables,
    and what the run cost."""
    parts, on = [], False
    for kind, *content in blocks:
        begins = (kind, content[0]) == ("heading", 2)
        if begins and on:  # the same run at the other scale
            parts.append(f"<h3>{html.escape(content[1])}</h3>")
        on = on or begins
        if (
            on
            and kind == "text"
            and content[0].startswith("**")
            and not content[0].startswith("**What differs")
        ):
            parts.append(prose(content[0]))
        elif on and kind == "table":
            parts.append(_table(*content))
        elif on and kind == "small" and "key" in content[0]:
            parts.append(f'<div class="note">{prose(content[0])}</div>')
    return "".join(parts)


def _table(columns, lines, legend):
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    cells = lambda line: "".join(f"<td>{html.escape(c)}</td>" for c in line[1:])
    body = "".join(f"<tr><th>{html.escape(line[0])}</th>{cells(line)}</tr>" for line in lines)
    table = (
        '<div class="wide '
        f'numbers"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    if len(lines) > SHOWN:
        table = f'<details class="fold"><summary>{len(lines)} lines</summary>{table}</details>'
    return table + (f'<p class="note">{html.escape(legend)}</p>' if legend else "")
