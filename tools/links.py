#!/usr/bin/env python3
"""Does every link lead somewhere? Relative links of the sources, and all internal links and anchors
of a built site.

    python tools/links.py            README, CONTRIBUTING, ... and the prose of all notebooks
    python tools/links.py FOLDER     the same, and the HTML pages below FOLDER

One finding per line, with file and link; exit code 1 if there is any. Addresses on the network are
not visited.
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.I)
FENCE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`|^(?: {4}|\t).*$", re.M | re.S)
IN_MARKDOWN = re.compile(
    r"""\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)"""
    r"""|<(?:a|img)\b[^>]*?\b(?:href|src)="([^"]+)"|^\[[^\]]+\]:\s*(\S+)""",
    re.M,
)
UNLOADED = ("link", "script", "img", "source", "iframe")  # what a page fetches to be shown


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(
        r"\s",
        "-",
        re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|<[^>]+>|\]\([^)]*\)", "", heading)).strip().lower(),
    )


def prose_of(path):
    """The Markdown of a file: itself, or the Markdown cells of a notebook."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(
            "".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"
        )
    return text


def anchors_of(path):
    return (
        {slug(h) for h in re.findall(r"^#{1,6}\s+(.+?)\s*$", prose_of(path), re.M)}
        if path.suffix in (".md", ".ipynb")
        else set()
    )


def links_of(path):
    return [
        next(filter(None, found))
        for found in IN_MARKDOWN.findall(
            re.sub(r"^#\|.*$", "", FENCE.sub("", prose_of(path)), flags=re.M)
        )
    ]


def sources(root):
    """Every Markdown file and notebook that belongs to the project."""
    kept = [p for p in root.glob("*.md")] + [
        p
        for folder in ("nbs", "data", "benchmarks", "tools")
        for pattern in ("*.md", "*.ipynb")
        for p in (root / folder).rglob(pattern)
    ]
    return sorted(
        p for p in kept if not any(part.startswith(".") for part in p.relative_to(root).parts)
    )


def check_sources(root):
    """Relative links that lead to no file or to no heading."""
    for path in sources(root):
        for link in links_of(path):
            if ELSEWHERE.match(link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.is_relative_to(root):
                yield f"{path.relative_to(root)}: {link} leads out of the project"
            elif not target.exists():
                yield f"{path.relative_to(root)}: {link} leads to nothing"
            elif (
                anchor
                and target.is_file()
                and slug(anchor.replace("-", " ")) not in anchors_of(target)
            ):
                yield f"{path.relative_to(root)}: {link} names a heading that is not there"


class Page(HTMLParser):
    """Links, anchors and loaded files of an HTML page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors, self.twice = [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if name := given.get("id"):
            (self.twice if name in self.anchors else self.anchors).add(name)
        if link := given.get("href") or given.get("src"):
            self.links.append(link)
            if tag in UNLOADED:
                self.loaded.append(link)


def check_site(folder):
    """Links of the pages that lead to no file or anchor, anchors used twice, and files that would
    come from the network."""
    pages = {
        path.resolve(): Page(path.read_text("utf-8")) for path in sorted(folder.rglob("*.html"))
    }
    if not pages:
        yield f"{folder}: holds no HTML pages; build them with: make docs"
    for path, page in pages.items():
        where = path.relative_to(folder.resolve())
        yield from (
            f"{where}: loads {link} from the network"
            for link in page.loaded
            if ELSEWHERE.match(link) and not link.startswith("data:")
        )
        yield from (f"{where}: the anchor {name} is there twice" for name in sorted(page.twice))
        for link in dict.fromkeys(page.links):
            if ELSEWHERE.match(link):
                continue
            split = urlsplit(link)
            target = (path.parent / unquote(split.path)).resolve() if split.path else path
            anchor = unquote(split.fragment)
            if not target.is_file():
                yield f"{where}: {link} leads to nothing"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{where}: {link} names an anchor that is not there"
    index = folder / "assets" / "search.js"
    if index.is_file():
        for url, *_ in json.loads(index.read_text("utf-8").split("=", 1)[1].strip().rstrip(";")):
            name, _, anchor = url.partition("#")
            if (page := pages.get((folder / name).resolve())) is None or anchor not in page.anchors:
                yield f"assets/search.js: {url} leads to nothing"


def main():
    root = Path(__file__).resolve().parents[1]
    found = list(check_sources(root))
    for folder in sys.argv[1:]:
        found += check_site(Path(folder).resolve())
    print(
        "\n".join(found)
        if found
        else f"every link leads somewhere: {len(sources(root))} files"
        + "".join(f", {sum(1 for _ in Path(f).rglob('*.html'))} pages in {f}" for f in sys.argv[1:])
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
