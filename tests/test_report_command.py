"""`oodnb report`: one page of everything, from folders as the runner leaves them."""

import argparse
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import mistune
import nbformat
import pandas as pd
import pytest
from hostile import NAMES
from PIL import Image

from oodnb.ground.spelling import visible
from oodnb.running.kernel import RunFailed, launch
from oodnb.running.plan import plan_run
from oodnb.pipeline.rows import (
    ROW_COLUMNS,
    markdown_table,
    markdown_text,
    published_rows,
    write_rows,
)
from oodnb.running.page import (
    Result,
    add_report_command,
    collect_results,
    report_blocks,
    write_report,
)


def row(value=80.0, **changes):
    base = (
        "locoop",
        "main",
        "mcm",
        "mini",
        "mini; v2",
        "mini-near",
        "auroc",
        value,
        "here",
        float("nan"),
        "",
        "mini",
        "k",
    )
    return dict(zip(ROW_COLUMNS, base)) | changes


def finished(runs, name, key, rows, scale="mini", **parameters):
    folder = runs / name / key
    folder.mkdir(parents=True)
    write_rows(pd.DataFrame(rows), folder / "rows.csv")
    Image.new("RGB", (3, 2), "teal").save(folder / "map.png")
    facts = {
        "key": key,
        "seconds": 61.0,
        "peak_memory_mb": 512,
        "versions": {"oodnb": "0.1", "torch": "2"},
        "seed": {"seeds": [1, 2]},
        "device": {"used": "cpu"},
    }
    for file, content in {
        "request": {"name": name, "parameters": {"scale": scale, "out": str(folder), **parameters}},
        "manifest": facts,
        "done": {"files": ["rows.csv", "map.png", "manifest.json"]},
    }.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def command(*words):
    parser = argparse.ArgumentParser()
    add_report_command(parser.add_subparsers())
    args = parser.parse_args(["report", *map(str, words)])
    return args.act(args)


def test_one_file_that_needs_nothing_else_and_is_the_same_twice(tmp_path, capsys):
    finished(tmp_path / "runs", "demo", "aa", [row()])
    assert command("--out", tmp_path / "runs") == 0
    assert "1 results: " in capsys.readouterr().out
    page = (tmp_path / "runs" / "report.html").read_bytes()
    command("--out", tmp_path / "runs")
    assert (tmp_path / "runs" / "report.html").read_bytes() == page
    text = page.decode()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "<script" not in text
    assert "80.0" in text and "1 min" in text or "61 s" in text
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(re.findall(r'id="([^"]+)"', text))


def test_markdown_links_its_figures_from_where_it_stands(tmp_path):
    finished(tmp_path / "runs", "demo", "aa", [row()])
    page = write_report(tmp_path / "pages" / "all.md", collect_results(out=tmp_path / "runs"))
    (link,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8"))
    assert (page.parent / link).is_file()


def test_the_newest_of_the_same_thing_and_every_other_thing(tmp_path):
    old, _ = (
        finished(tmp_path, "demo", key, [row(value)], steps=5)
        for key, value in (("aa", 70.0), ("bb", 71.0))
    )
    os.utime(old / "request.json", (1, 1))
    finished(tmp_path, "demo", "cc", [row(72.0)], steps=6)
    assert [r.folder.name for r in collect_results(out=tmp_path)] == ["bb", "cc"]


def test_intervals_of_the_run_stand_beside_its_numbers(tmp_path):
    folder = finished(
        tmp_path, "demo", "aa", [row(80.0), row(60.0, method="energy", std=0.5, seeds="1;2")]
    )
    pd.DataFrame(
        [
            {
                "detector": "mcm",
                "dataset": "mini-near",
                "auroc": 80.0,
                "auroc_low": 78.0,
                "auroc_high": 82.0,
            }
        ]
    ).to_csv(folder / "metrics.csv", index=False)
    tables = [b for b in report_blocks(collect_results(out=tmp_path)) if b[0] == "table"]
    assert tables[1][2] == [["mcm", "80.0 ±2.0"], ["energy", "60.0 ±0.5ˢ"]]


def test_only_the_papers_scale_is_held_against_the_papers(tmp_path):
    known = published_rows("locoop").iloc[[0]].assign(scale="paper", run="k", source="oodnb")
    finished(tmp_path, "far", "aa", [row()])
    finished(
        tmp_path,
        "real",
        "bb",
        known.assign(value=known["value"] - 1.5).to_dict("records"),
        scale="paper",
    )
    tables = [
        b
        for b in report_blocks(collect_results(out=tmp_path))
        if b[0] == "table" and "published" in b[1]
    ]
    assert len(tables) == 1 and tables[0][2][0][-1] == "-1.50"


def test_failures_are_told_with_cell_and_error(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# broken\n\n> Fails."),
            nbformat.v4.new_code_cell(
                "scale: str = 'mini'\nout: str = ''", metadata={"tags": ["parameters"]}
            ),
            nbformat.v4.new_code_cell("1 / 0"),
        ]
    )
    (tmp_path / "nbs").mkdir()
    nbformat.write(notebook, tmp_path / "nbs" / "broken.ipynb")
    job = plan_run("broken", notebooks=tmp_path / "nbs", out=tmp_path / "runs")
    job.folder.mkdir(parents=True)
    with pytest.raises(RunFailed):
        launch(
            job.folder,
            {"name": job.name, "notebook": str(job.notebook), "parameters": job.parameters},
            Path(__file__).parents[1],
        )
    page = write_report(tmp_path / "page.md", collect_results(out=tmp_path / "runs")).read_text(
        "utf-8"
    )
    assert (
        "failed, cell 3: ZeroDivisionError: division by zero" in page
        and "1 / 0" in page
        and "failed.ipynb" in page
    )


def test_a_folder_with_torn_files_is_no_obstacle(tmp_path):
    folder = tmp_path / "demo" / "aa"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text('{"name": "de')
    (found,) = collect_results(out=tmp_path)
    assert found.state == "interrupted" and "stopped from outside" in str(report_blocks([found]))


def test_what_was_accepted_is_complete_and_no_figure_has_two_owners():
    found = collect_results(accepted=True)
    figures = [path for r in found for path in r.figures]
    root = Path(__file__).parents[1]
    assert len(figures) == len(set(figures))
    unowned = {p.name for p in (root / "figures").iterdir() if p.suffix in (".png", ".svg")} - {
        p.name for p in figures
    }
    assert all(name.startswith("explore_") for name in unowned)


def test_wrong_usage_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="oodnb run nothing"):
        collect_results(["nothing"], out=tmp_path)
    with pytest.raises(ValueError, match=r"end it in \.html"):
        write_report(tmp_path / "page.pdf", [])


# names that want to be more than names


class Elements(HTMLParser):
    """Tags and attributes of a page, and the words between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.words.append(data)


def read(markdown):
    """Elements of Markdown as the most trusting reader shows it."""
    renderer = mistune.HTMLRenderer(escape=False, allow_harmful_protocols=True)
    return Elements(
        mistune.create_markdown(renderer=renderer, plugins=["table", "strikethrough"])(markdown)
    )


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_in_markdown_is_shown_and_not_obeyed(name):
    shown, line = (
        mistune.create_markdown(escape=False, plugins=["table", "strikethrough"]),
        visible(name),
    )
    escaped = html.escape(line).replace("&#x27;", "'")
    assert shown(f"of {markdown_text(name)}.") == f"<p>of {escaped}.</p>\n"
    page = read(markdown_table(["", name], [[name, "1.0"]]))
    assert (
        page.tags == {"table", "thead", "tbody", "tr", "th", "td"} and page.words.count(line) == 2
    )


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_page_with_hostile_names_has_no_more_than_its_own_elements(tmp_path, name):
    if not name.isprintable():  # file systems and Arrow refuse some of them
        name = visible(name)
    picture = tmp_path / (name.replace("/", "-") + ".png")
    Image.new("RGB", (3, 2), "teal").save(picture)
    write_rows(
        pd.DataFrame([row(setting=f"mini; {name}"), row(method="energy", setting="mini; v2")]),
        tmp_path / "rows.csv",
    )
    facts = {"key": name, "device": {"gpu": name}, "versions": {"oodnb": name}}
    good = Result(
        name,
        "accepted",
        changed={"who": name},
        rows=tmp_path / "rows.csv",
        figures=(picture,),
        manifest=facts,
    )
    bad = Result(
        "bad",
        "failed",
        changed={"who": name},
        failure={"cell": 1, "source": name, "error": "OSError", "message": name},
    )
    page = Elements(write_report(tmp_path / "a.html", [good, bad]).read_text("utf-8"))
    own = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "p",
        "a",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    assert page.tags <= own | {"figure", "img", "figcaption", "pre", "small", "strong", "code"}
    assert {key for key, _ in page.attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "class",
        "id",
        "href",
        "alt",
        "src",
    }
    assert all(
        value.startswith(("#", "data:image/png;"))
        for key, value in page.attributes
        if key in ("href", "src")
    )
    assert visible(name, lines=True) in "".join(page.words)
    page = read(write_report(tmp_path / "a.md", [good, bad]).read_text("utf-8"))
    assert page.tags <= {
        "h1",
        "h2",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "strong",
        "code",
        "pre",
        "img",
    }
    assert [value for key, value in page.attributes if key == "src"] == [quote(picture.name)]
    assert {key for key, _ in page.attributes} <= {"alt", "src", "style", "class"}
