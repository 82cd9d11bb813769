#!/usr/bin/env python3
"""The site: every notebook, the reference of every public name, and the accepted results as HTML
pages that can be read without a network.

    python tools/docs [FOLDER]      writes FOLDER (runs/html); open FOLDER/index.html

Why no mkdocs: mkdocs 1.6 with material, mkdocs-jupyter 0.26 and mkdocstrings 1.0 was tried on this
repository (2026). It took 74 s of one core for 233 pages of 127 MB, against 9 s for 246 pages of 34
MB, and 82 packages, against one besides nbdev's own. The comments beside parameters, which hold
shapes and units, are lost, links from notebook to notebook lead to .ipynb files (135 of them),
formulas stay TeX until a MathJax is added, and the search needs a server or one more plugin.
Contents, accepted results and the ways between a name and its cell would have to be written all the
same.
"""

import argparse
import html
import json
import os
import posixpath
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import jinja2
from contents import plan
from maps import map_as_markdown
from notebooks import Notebook, Writer, figures_as_markdown, figures_of, need_of, rows_as_html
from prose import Prose, colour, plain, slug, style_sheet

HERE = Path(__file__).parent
UNSEARCHED = re.compile(
    r"<pre\b.*?</pre>|<details class=\"code\">.*?</details>", re.S
)  # code and printed output


def accepted_results(root):
    """Accepted results of this checkout, as `oodnb report` shows them: name → blocks."""
    if (
        not (root / "oodnb" / "running" / "page.py").is_file()
        or not (root / "data" / "reproduced").is_dir()
    ):
        return {}
    sys.path.insert(0, str(root))
    from oodnb.running.page import collect_results, report_blocks

    found = {}  # a run accepted at both scales has a section for each, the mini world first
    for result in collect_results(accepted=True):
        if result.rows:
            found.setdefault(result.name, []).extend(report_blocks([result]))
    return found


class Site:
    """Writes all pages into a folder; remembers what has to be copied and what can be searched."""

    def __init__(self, root, out):
        self.root, self.out, self.sections = root, out, plan(root)
        self.pages = [page for section in self.sections for page in section.pages]
        self.by_source = {page.source: page for page in self.pages if page.source} | {
            "nbs/index.ipynb": self.pages[0]
        }
        self.modules = {
            page.about.name: page.about
            for page in self.pages
            if page.section == "Reference" and page.about
        }
        self.notebooks = {
            page.about.path: page.about for page in self.pages if isinstance(page.about, Notebook)
        }
        self.names, self.copied, self.searchable, self.accepted = (
            self._names(),
            set(),
            [],
            accepted_results(root),
        )
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.template = environment.get_template("page.html")

    def _names(self):
        """What may be written in backticks and leads somewhere: names that are defined once,
        modules, paper notebooks."""
        homes = {}
        for name, module in self.modules.items():
            for entry in module.entries:
                if entry.kind != "elsewhere":
                    homes.setdefault(entry.name, []).append(f"api/{name}.html#{entry.name}")
                    homes[f"{name}.{entry.name}"] = [f"api/{name}.html#{entry.name}"]
            homes[name] = [f"api/{name}.html"]
        found = {name: places[0] for name, places in homes.items() if len(places) == 1}
        return found | {
            page.about.stem: page.url
            for page in self.pages
            if page.section == "Papers" and page.about and "_" in page.about.stem
        }

    def lookup(self, page):
        """From the text in backticks to an address on this page, or None; short plain words are
        left alone."""

        def find(text):
            name = re.sub(r"\(.*\)$", "", text)
            telling = name != text or "_" in name or "." in name or re.search(r"[a-z][A-Z]", name)
            target = self.names.get(name) if telling else None
            return (
                self.relative(page, target) if target and target.split("#")[0] != page.url else None
            )

        return find

    def relative(self, page, target):
        """An address of the site as seen from a page."""
        path, _, anchor = target.partition("#")
        return posixpath.relpath(path, posixpath.dirname(page.url) or ".") + (
            f"#{anchor}" if anchor else ""
        )

    def link(self, page):
        """From an address in the repository to one in the site; files that are no pages are copied
        beside them."""
        folder = posixpath.dirname(page.source)

        def address(url):
            if re.match(r"[a-z]+:|//", url):
                return url
            path, _, anchor = url.partition("#")
            anchor = f"#{slug(unquote(anchor))}" if anchor else ""
            if not path:
                return anchor
            target = posixpath.normpath(posixpath.join(folder, unquote(path)))
            if target in self.by_source:
                return self.relative(page, self.by_source[target].url) + anchor
            if (self.root / target).is_file():
                self.copied.add(target)
                return self.relative(page, target)
            part = slug(posixpath.basename(target))
            found = "contents.html" + (
                f"#{part}" if part in {slug(section.name) for section in self.sections} else ""
            )
            return self.relative(page, found) if (self.root / target).is_dir() else url

        return address

    def write(self):
        for k, page in enumerate(self.pages):
            prose = Prose(self.link(page), self.lookup(page))
            body, extra = self.body(page, prose)
            toc = [
                (level, anchor, re.sub(r"</?a\b[^>]*>", "", text))
                for level, anchor, text in prose.renderer.headings
                if level in (2, 3)
            ]
            shown = page.source if page.source and page.url != "index.html" else ""
            self.copied |= {shown} - {""}
            text = self.template.render(
                site="oodnb",
                title=page.title,
                blurb=page.blurb,
                body=body,
                toc=toc,
                url=page.url,
                here=page.section,
                source=shown,
                root="../" * page.url.count("/"),
                sections=self.sections,
                top=[
                    *(
                        (s.name, s.pages[0].url)
                        for s in self.sections
                        if s.pages and s.name not in ("Start", "About")
                    ),
                    *((p.title, p.url) for p in self.pages if p.source == "nbs/explore.ipynb"),
                ],
                # fmt: skip
                before=self.pages[k - 1] if k else None,
                after=self.pages[k + 1] if k + 1 < len(self.pages) else None,
                **extra,
            )
            path = self.out / page.url
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            self.index(page, body)
        self.assets()

    def body(self, page, prose):
        """HTML of a page, and what its head line shows beside the source."""
        if isinstance(page.about, Notebook):
            return self.notebook(page, prose)
        if page.about is not None:
            return self.module(page, prose)
        if page.url == "contents.html":
            return self.contents(page, prose), {}
        if page.url == "api/index.html":
            return self.all_names(page, prose), {}
        if page.url.startswith("maps/"):
            return prose(map_as_markdown(self.root, page.source)), {}
        return prose((self.root / page.source).read_text("utf-8")), {}

    def notebook(self, page, prose):
        notebook, names, also = page.about, {}, []
        for name, module in self.modules.items():
            if module.notebook == notebook.path:
                also.append(("reference", self.relative(page, f"api/{name}.html")))
                for entry in module.entries:
                    names.setdefault(entry.cell, []).append(
                        (entry.name, self.relative(page, f"api/{name}.html#{entry.name}"))
                    )
        folded = page.section == "Papers"
        folder = self.out / posixpath.dirname(page.url) / f"{notebook.stem}_files"
        writer, parts = Writer(notebook, prose, names, folder, folded), []
        first_code = next(
            (
                k
                for k, c in enumerate(notebook.cells)
                if c["cell_type"] == "code" and "default_exp" not in "".join(c["source"])
            ),
            len(notebook.cells),
        )
        for k, cell in enumerate(notebook.cells):
            if k == first_code:
                parts.append(self.results(page, prose))
            parts.append(writer.cell(cell))
        return "".join(parts), dict(also=also, folded=folded)

    def results(self, page, prose):
        """Accepted figures and rows of a notebook."""
        figures, stem, paper = (
            figures_of(self.root, page.about),
            page.about.stem,
            page.section == "Papers",
        )
        blocks = self.accepted.get(stem, []) if paper else []
        if not figures and not blocks:
            return ""
        parts = [
            prose("## Accepted results" if paper else "## In JupyterLab"),
            prose(figures_as_markdown(page.about, figures)),
        ]
        if blocks:
            rows = self.link(page)("../" * page.source.count("/") + f"data/reproduced/{stem}.csv")
            numbers = rows_as_html(blocks, prose)
            spread = "; ±ˢ the standard deviation over seeds" if "ˢ" in numbers else ""
            half = f" ± is half of the 95 % bootstrap interval over pictures{spread}."
            parts += [
                numbers,
                (
                    f'<p class="note">All rows: <a href="{rows}">{stem}.csv</a>.'
                    f"{half if '±' in numbers else ''}</p>"
                ),
            ]
        return "".join([*parts, prose("## How it is made") if paper else ""])

    def module(self, page, prose):
        module = page.about
        notebook = self.notebooks[module.notebook]
        parts = [prose(f"# {module.name}\n\n> {module.doc}\n")]
        told, public = set(), {entry.cell for entry in module.entries}
        for entry in module.entries:
            parts.append(
                self.entry(
                    page,
                    prose,
                    module,
                    entry,
                    "" if entry.cell in told else need_of(notebook, entry.cell, public),
                )
            )
            told.add(entry.cell)
        return "".join(parts), dict(
            also=[
                (
                    f"notebook {notebook.stem}",
                    self.relative(page, self.by_source[notebook.path].url),
                )
            ]
        )

    def entry(self, page, prose, module, entry, need):
        """One name: signature, what it does, its parameters, why it exists."""
        if entry.kind == "elsewhere":
            there = self.relative(page, f"api/{entry.home}.html#{entry.name}")
            prose.renderer.headings.append((2, entry.name, entry.name))
            return (
                f'<div class="entry"><h2 id="{entry.name}">{entry.name}</h2><p>comes from '
                f'<a href="{there}"><code>{entry.home}</code></a></p></div>'
            )
        cell = self.relative(page, f"{self.by_source[module.notebook].url}#cell-{entry.cell}")
        prose.renderer.headings.append((2, entry.name, entry.name))
        parts = [
            (
                f'<div class="entry"><h2 id="{entry.name}">{entry.name}<a class="anchor" '
                f'href="#{entry.name}" aria-label="link to {entry.name}">#</a></h2>'
            ),
            self.described(prose, entry),
        ]
        for member in entry.members:
            anchor = f"{entry.name}.{member.name}"
            parts.append(f'<h3 id="{anchor}">.{member.name}</h3>{self.described(prose, member)}')
        if need:
            inside = Prose(self.link(self.by_source[module.notebook]), prose.renderer.names)
            inside.renderer.address = self.from_notebook(page, module)
            parts.append(
                f'<details class="fold"{" open" if "$$" in need else ""}><summary>from '
                f"the notebook</summary>{inside(need)}</details>"
            )
        return "".join(
            [*parts, f'<p class="note"><a href="{cell}">notebook cell and source</a></p></div>\n']
        )

    def from_notebook(self, page, module):
        """Addresses in a notebook's prose, as seen from a page of the reference."""
        there = self.by_source[module.notebook]

        def address(url):
            found = self.link(there)(url)
            return (
                found
                if re.match(r"[a-z]+:|//|#", found)
                else self.relative(
                    page, posixpath.normpath(posixpath.join(posixpath.dirname(there.url), found))
                )
            )

        return address

    def described(self, prose, entry):
        """Signature, docstring, and the table of parameters; columns that are empty everywhere are
        left out."""

        def code(text):
            return f"<code>{html.escape(text)}</code>" if text else ""

        parts = [
            "" if entry.kind == "property" else f'<pre class="hl">{colour(entry.signature)}</pre>',
            prose(entry.doc) if entry.doc else "",
        ]
        rows = [
            (code(name), code(kind), code(value), prose.inline(note) if note else "")
            for name, kind, value, note in entry.rows
        ]
        if any(entry.returns):
            rows.append(
                (
                    "<em>gives</em>",
                    code(entry.returns[0]),
                    "",
                    prose.inline(entry.returns[1]) if entry.returns[1] else "",
                )
            )
        if rows:
            columns = [k for k in range(4) if any(row[k] for row in rows)]
            head = "".join(
                f"<th>{('name', 'type', 'default', 'meaning, shape, unit')[k]}</th>"
                for k in columns
            )
            lines = "".join(
                f"<tr>{''.join(f'<td>{row[k]}</td>' for k in columns)}</tr>" for row in rows
            )
            parts.append(
                f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
                f"<tbody>{lines}</tbody></table></div>"
            )
        return "".join(parts)

    def contents(self, page, prose):
        parts = [prose(f"# {page.title}\n\n> {page.blurb}")]
        for section in self.sections:
            parts.append(prose(f"## {section.name}"))
            for group, pages in section.groups:
                parts.append(prose(f"### {group}") if group else "")
                items = (
                    (
                        f'<li><a href="{self.relative(page, p.url)}">'
                        f"{p.mark + ' ' if p.mark else ''}{html.escape(p.title)}</a>"
                        f"<span>{prose.inline(p.blurb) if p.blurb else ''}</span></li>"
                    )
                    for p in pages
                    if p is not page
                )
                parts.append(f'<ul class="list">{"".join(items)}</ul>')
        return "".join(parts)

    def all_names(self, page, prose):
        parts = [
            prose(
                f"# {page.title}\n\n> {page.blurb} Signatures, parameters and shapes are "
                "read from the package, the reasons and formulas from its notebooks."
            )
        ]
        for name, module in self.modules.items():
            parts.append(prose(f"## {name}\n\n{module.doc.splitlines()[0] if module.doc else ''}"))
            items = (
                (
                    f'<li><a href="{self.relative(page, f"api/{name}.html#{e.name}")}">'
                    f"<code>{e.name}</code></a>"
                    f"<span>{prose.inline(e.doc.splitlines()[0]) if e.doc else ''}</span></li>"
                )
                for e in module.entries
                if e.kind != "elsewhere"
            )
            parts.append(f'<ul class="list">{"".join(items)}</ul>')
        return "".join(parts)

    def index(self, page, body):
        """A search entry per heading."""
        if page.url in ("contents.html", "api/index.html"):
            return
        pieces = re.split(
            r'<h[1-3] id="([^"]+)">(.*?)</h[1-3]>', UNSEARCHED.sub(" ", body), flags=re.S
        )
        for anchor, heading, text in zip(pieces[1::3], pieces[2::3], pieces[3::3]):
            words = plain(re.sub(r'<a class="anchor".*?</a>', "", heading))
            self.searchable.append(
                [
                    f"{page.url}#{anchor}",
                    page.title,
                    words if words != page.title else "",
                    plain(text)[:1500],
                ]
            )

    def assets(self):
        folder = self.out / "assets"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "site.js", folder)
        colours = (
            style_sheet("default", ".hl")
            + "\n"
            + style_sheet("github-dark", '[data-theme="dark"] .hl')
        )
        unpainted = "\n".join(line for line in colours.splitlines() if ".hl ." in line)
        (folder / "style.css").write_text(
            (HERE / "style.css").read_text("utf-8") + unpainted + "\n", "utf-8"
        )
        (folder / "search.js").write_text(
            "window.searchIndex = "
            + json.dumps(self.searchable, ensure_ascii=False, separators=(",", ":"))
            + ";\n",
            "utf-8",
        )
        for name in sorted(self.copied):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / name, self.out / name)


def main():
    parser = argparse.ArgumentParser(description="Writes the HTML site of the notebooks.")
    parser.add_argument("folder", nargs="?", type=Path, help="where to (default: runs/html)")
    parser.add_argument(
        "--root", type=Path, default=HERE.parents[1], help="the project (default: this one)"
    )
    given = parser.parse_args()
    root, out = given.root.resolve(), (given.folder or given.root / "runs" / "html").resolve()
    if not (root / "nbs").is_dir() or not (root / "README.md").is_file():
        parser.error(f"{root} is no project: it has no nbs/ or no README.md; give one with --root")
    if out.is_dir() and os.listdir(out) and not (out / "index.html").is_file():
        parser.error(
            f"{out} holds something else than a site; give an empty folder, because it is "
            "written anew"
        )
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    site = Site(root, fresh)
    site.write()
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    print(
        f"{len(site.pages)} pages, {len(site.searchable)} searchable sections: {out / 'index.html'}"
    )


if __name__ == "__main__":
    main()
