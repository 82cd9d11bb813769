"""What there is to read, and in which order: found on disk, nothing is listed by hand but the
headings of groups."""

import re
from dataclasses import dataclass, field

from maps import TITLES
from notebooks import read_notebook
from public_names import read_package

CHAPTERS = dict(
    ground="The ground",
    measure="Measuring",
    models="Models",
    miniworld="The mini world",
    data="Data",
    pipeline="From pictures to scores",
    locoop="LoCoOp",
    hftt="HFTT",
    clipn="CLIPN",
    toe="TOE",
    # fmt: skip
    forget="Class forgetting",
    more="More methods",
    evidence="Evidence",
    running="Running",
    checks="Checks",
    views="Views",
    command="The command",
)
PAPERS = dict(
    scoreboard="All methods",
    zeroshot="MCM and GL-MCM",
    locoop="LoCoOp",
    clipn="CLIPN",
    toe="TOE",
    hftt="HFTT",
    forget="Class forgetting",
    more="Beside the five",
    mini="The mini world",
)


@dataclass
class Page:
    """One page of the site."""

    url: str  # from the site's folder
    title: str
    section: str
    source: str = ""  # file of the repository it shows
    blurb: str = ""
    mark: str = ""  # number before the title
    group: str = ""
    about: object = None  # Notebook, Module or nothing


@dataclass
class Section:
    """A part of the contents; pages are in reading order."""

    name: str
    pages: list = field(default_factory=list)

    @property
    def groups(self):
        order = list(dict.fromkeys(page.group for page in self.pages))
        return [(group, [page for page in self.pages if page.group == group]) for group in order]


def paper_group(notebook):
    prefix = notebook.stem.split("_")[0]
    return list(PAPERS).index(prefix) if prefix in PAPERS else len(PAPERS), PAPERS.get(
        prefix, prefix
    )


def chapters(root):
    """The folders of nbs whose names begin with a number, in the order of these numbers: (number,
    folder, heading)."""
    found = sorted(
        (int(path.name.split("_")[0]), path)
        for path in (root / "nbs").glob("[0-9]*_*")
        if path.is_dir()
    )
    return [
        (
            number,
            path,
            CHAPTERS.get(path.name.partition("_")[2], path.name.partition("_")[2].capitalize()),
        )
        for number, path in found
    ]


def module_page(name, module):
    short = name.removeprefix("oodnb.")
    blurb = module.doc.splitlines()[0] if module.doc else ""
    source = f"oodnb/{short.replace('.', '/')}.py"
    return Page(f"api/{name}.html", short, "Reference", source, blurb, about=module)


def notebook_pages(root, section, paths, group=lambda notebook: ""):
    for path in paths:
        notebook = read_notebook(root, path.relative_to(root).as_posix())
        mark = "" if notebook.number is None else str(notebook.number)
        yield Page(
            notebook.path.replace(".ipynb", ".html"),
            notebook.title.removeprefix("methods."),
            section,
            notebook.path,
            notebook.blurb,
            mark,
            group(notebook),
            notebook,
        )


def markdown_pages(root):
    """The other texts of the project: those beside the README, and what lies beside data."""
    for path in [*sorted(root.glob("*.md")), *sorted((root / "data").rglob("*.md"))]:
        title = re.search(r"^# (.+)$", path.read_text("utf-8"), re.M)
        name = path.relative_to(root).as_posix()
        if name != "README.md":
            yield Page(
                name.removesuffix(".md") + ".html",
                title[1].strip() if title else name,
                "About",
                name,
                group="Data" if name.startswith("data/") else "",
            )


def map_pages(root):
    """What became of everything that a paper numbers, a page for each."""
    for path in sorted((root / "data" / "maps").glob("*.csv")):
        title = TITLES.get(path.stem, path.stem)
        yield Page(
            f"maps/{path.stem}.html",
            f"Map: {title}",
            "Papers",
            path.relative_to(root).as_posix(),
            "Every equation, table and figure: function, case, notebook, rows, or why not.",
            group="Maps of the papers",
        )


def plan(root):
    """All sections in reading order."""

    def below(folder):
        return sorted(
            (root / "nbs" / folder).glob("[!_.]*.ipynb"),
            key=lambda path: (
                int(path.stem.split("_")[0]) if path.stem.split("_")[0].isdigit() else 0,
                path.name,
            ),
        )

    start = [
        Page("index.html", "oodnb", "Start", "README.md"),
        Page("contents.html", "Contents", "Start", blurb="Everything here, in reading order."),
    ]
    start += notebook_pages(
        root, "Start", [path for path in [root / "nbs/explore.ipynb"] if path.is_file()]
    )
    papers = sorted(
        notebook_pages(root, "Papers", below("papers"), lambda n: paper_group(n)[1]),
        key=lambda page: (paper_group(page.about)[0], page.title),
    )
    modules = [
        module_page(name, module) for name, module in sorted(read_package(root / "oodnb").items())
    ]
    return [
        Section("Start", start),
        Section("Tutorials", list(notebook_pages(root, "Tutorials", below("tutorials")))),
        Section(
            "Chapters",
            [
                page
                for number, folder, heading in chapters(root)
                for page in notebook_pages(
                    root,
                    "Chapters",
                    below(folder.name),
                    lambda n, group=f"{number} · {heading}": group,
                )
            ],
        ),
        Section("Papers", [*map_pages(root), *papers]),
        Section(
            "Reference",
            [
                Page(
                    "api/index.html",
                    "All names",
                    "Reference",
                    blurb="Every public name of the package.",
                ),
                *modules,
            ],
        ),
        Section("About", list(markdown_pages(root))),
    ]
