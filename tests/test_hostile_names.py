"""Names of files, classes and detectors are shown wherever they appear, and obeyed nowhere: tables,
figures, explorers, pages of the site, spreadsheets, terminals."""

import csv
import importlib
import re
import sys
import unicodedata
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hostile import NAMES

from oodnb.benchmark import score_table
from oodnb.ground.spelling import visible
from oodnb.pipeline.rows import read_csv, write_csv
from oodnb.report import plot_metric_intervals, plot_roc, plot_score_distributions, save_figure
from oodnb.results import metrics_table, to_html, to_markdown
from oodnb.running.page import Result, write_report

mistune = pytest.importorskip("mistune")
ROOT = Path(__file__).parents[1]


class Elements(HTMLParser):
    """Tags and attributes of a page, and the words between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = set(), {}, []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= dict(attributes)

    def handle_data(self, data):
        self.words.append(data)

    handle_comment = handle_decl = unknown_decl = handle_pi = None  # whoever calls them fails


def unseen(text):
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t‌‍"]


SAFE = [visible(n) if unicodedata.category(n[0]) == "Cs" else n for n in NAMES]  # Arrow's texts
PARTS = [SAFE[k::5] for k in range(5)]


def scores(names):
    """Every name is a detector, the first two are sets too."""
    chance = np.random.default_rng(0)
    known, other = chance.normal(1, 1, 30), chance.normal(0, 1, 30)
    of = lambda values: dict.fromkeys(names, values)
    return score_table(of(known), dict.fromkeys(names[:2], of(other)), id_name=names[0])


@pytest.fixture(params=NAMES, ids=range(len(NAMES)))
def name(request):
    return request.param


@pytest.fixture(params=PARTS, ids=range(len(PARTS)))
def names(request):
    return request.param


def shown_in(words):
    return {" ".join(text.split()) for text in words}


def test_what_is_shown_can_be_seen_and_read_back(name):
    shown = visible(name)
    assert not unseen(shown) and "\n" not in shown
    shown.encode("utf-8")
    assert visible("crème brûlée, 犬 & <b>") == "crème brûlée, 犬 & <b>"


def test_tables_hold_nothing_but_their_own_elements(names):
    table = metrics_table(scores(names), n_boot=5)
    markdown, page = to_markdown(table), to_html(table)
    assert not unseen(markdown + page)
    own = {"table", "caption", "thead", "tbody", "tr", "th", "td", "b"}
    found = Elements(page)
    assert found.tags <= own and set(found.attributes) <= {"style"}
    assert set(map(visible, names)) <= shown_in(found.words)
    renderer = mistune.HTMLRenderer(escape=False, allow_harmful_protocols=True)
    reader = mistune.create_markdown(renderer, plugins=["table", "strikethrough", "url", "math"])
    found = Elements(reader(markdown))
    assert found.tags <= own - {"caption", "b"} | {"strong", "p"}
    for name in names:
        assert visible(name) in "".join(found.words)


def test_figures_show_a_name_as_it_is(names, tmp_path):
    table = scores(names)
    drawn = [plot_score_distributions, plot_roc]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figures = [draw(table) for draw in drawn]
        figures.append(plot_metric_intervals(metrics_table(table, n_boot=5)))
        for k, figure in enumerate(figures):
            path = save_figure(figure, tmp_path / f"{k}.svg")
            texts = ["".join(t.itertext()) for t in ElementTree.parse(path).iter()]
            assert set(map(visible, names)) <= shown_in(texts), k
            assert not re.search("<(script|image|a|foreignObject)[ >]", path.read_text("utf-8"))


def test_a_spreadsheet_runs_nothing_and_reading_gives_the_same(name, tmp_path):
    if unicodedata.category(name[0]) == "Cs":  # half a sign has no bytes: it is spelled out
        name = visible(name)
    table = pd.DataFrame({"detector": [name, "b"], "value": [-1.5, 2.0], name: ["x", "-1.5"]})
    path = write_csv(table, tmp_path / "a.csv")
    with open(path, encoding="utf-8", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    for cell in cells:
        assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r") or re.fullmatch(r"-?[\d.]+", cell)
    pd.testing.assert_frame_equal(read_csv(path), table)


def test_an_explorer_writes_a_name_as_text(names):
    pytest.importorskip("ipywidgets")
    from oodnb.explore import explore_scores

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        explorer = explore_scores(scores(names))
    found = Elements(explorer.says.value + explorer.note.value)
    assert found.tags == {"div", "small"} and set(found.attributes) <= {"class", "style"}
    assert not unseen(explorer.says.value)
    for name in names:
        explorer.panel_of = lambda **values: (_ for _ in ()).throw(ValueError(name))
        explorer.refresh()
        found = Elements(explorer.says.value)
        assert found.tags == {"div"} and visible(name).strip() in "".join(found.words)


@pytest.mark.parametrize("kind", ["text/html", "text/markdown", "text/plain"])
def test_a_page_of_the_site_shows_outputs_and_obeys_none(kind, name, monkeypatch):
    pytest.importorskip("latex2mathml", reason="pip install 'oodnb[docs]' brings it")
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools" / "docs"), *sys.path])
    prose = importlib.import_module("prose").Prose(lambda url: url, lambda text: None)
    writer = importlib.import_module("notebooks").Writer(None, prose, {}, None, False)
    made = writer.output({"output_type": "execute_result", "data": {kind: [name]}}, "")
    found = Elements(made)
    acting = {"script", "svg", "iframe", "base", "style", "input", "object"}
    assert not found.tags & (acting if kind == "text/markdown" else acting | {"img", "a"})
    assert not [key for key in found.attributes if key.startswith("on") or key == "srcdoc"]
    assert "javascript:" not in str(found.attributes.get("href", ""))


def test_a_report_of_failures_has_no_unseen_signs(name, tmp_path):
    failed = Result(
        name, "failed", failure={"cell": 1, "source": name, "error": "E", "message": name}
    )
    for path in (tmp_path / "a.html", tmp_path / "a.md"):
        assert not unseen(write_report(path, [failed]).read_text("utf-8"))
