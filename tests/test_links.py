"""Every relative link of the sources leads somewhere, and tools/links.py finds each kind of link
that does not."""

import json

import pytest
from scripts import ROOT, load

links = load("tools", "links")


def test_the_sources_lead_somewhere():
    assert list(links.check_sources(ROOT)) == []


@pytest.fixture
def project(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "README.md").write_text(
        "# Top\n\n## Two words\n\n[here](nbs/a.ipynb) [there](#two-words) [out](https://example.org)\n"
    )
    write_notebook(
        tmp_path, "# A\n\n## `name` and [link](../README.md)\n\n[up](../README.md#two-words)"
    )
    return tmp_path.resolve()


def write_notebook(project, *cells):
    body = [
        dict(cell_type="markdown", id=str(k), metadata={}, source=text.splitlines(keepends=True))
        for k, text in enumerate(cells)
    ]
    (project / "nbs" / "a.ipynb").write_text(
        json.dumps(dict(cells=body, metadata={}, nbformat=4, nbformat_minor=5))
    )


def test_good_links(project):
    assert list(links.check_sources(project)) == []


@pytest.mark.parametrize(
    "link, told",
    [
        ("[x](nbs/b.ipynb)", "nbs/b.ipynb leads to nothing"),
        ("![x](figures/none.png)", "figures/none.png leads to nothing"),
        ('<img width="3" src="none.png">', "none.png leads to nothing"),
        ("[x](#three)", "#three names a heading that is not there"),
        ("[x](nbs/a.ipynb#three)", "nbs/a.ipynb#three names a heading that is not there"),
        ("[x](../elsewhere.md)", "../elsewhere.md leads out of the project"),
        ("[x]: nbs/b.ipynb", "nbs/b.ipynb leads to nothing"),
    ],
)
def test_dead_links(project, link, told):
    (project / "README.md").write_text(f"# Top\n\n{link}\n")
    write_notebook(project, "# A")
    assert list(links.check_sources(project)) == [f"README.md: {told}"]


@pytest.mark.parametrize(
    "text",
    [
        "`[x](none.md)`",
        "```\n[x](none.md)\n```",
        "    [x](none.md)",
        "[x](nbs/a.ipynb#name-and-link)",
        "[x](<nbs/a.ipynb>)",
        "[x](nbs)",
        "[mail](mailto:a@b.c)",
    ],
)
def test_what_is_no_dead_link(project, text):
    (project / "README.md").write_text(f"# Top\n\n## Two words\n\n{text}\n")
    assert list(links.check_sources(project)) == []


def test_links_in_notebooks_are_seen_from_the_notebook(project):
    write_notebook(project, "[x](README.md)", "[y](../README.md)")
    assert list(links.check_sources(project)) == ["nbs/a.ipynb: README.md leads to nothing"]


def pages(folder, **bodies):
    for name, body in bodies.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>")
    return list(links.check_site(folder.resolve()))


def test_a_good_site(tmp_path):
    assert (
        pages(
            tmp_path,
            a='<h1 id="top">A</h1><a href="b.html#end">b</a><a href="#top">up</a><a href="https://example.org">out</a>',
            b='<p id="end"><img src="data:image/png;base64,AA=="></p>',
        )
        == []
    )


@pytest.mark.parametrize(
    "body, told",
    [
        ('<a href="c.html">c</a>', "a.html: c.html leads to nothing"),
        ('<img src="c.png">', "a.html: c.png leads to nothing"),
        ('<a href="b.html#none">b</a>', "a.html: b.html#none names an anchor that is not there"),
        ('<p id="x"></p><p id="x"></p>', "a.html: the anchor x is there twice"),
        (
            '<script src="https://example.org/x.js"></script>',
            "a.html: loads https://example.org/x.js from the network",
        ),
    ],
)
def test_a_bad_site(tmp_path, body, told):
    assert pages(tmp_path, a=body, b="<p>b</p>") == [told]


def test_search_entries_are_links_too(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "search.js").write_text(
        'window.searchIndex = [["a.html#top","A","",""],["a.html#none","A","",""]];\n'
    )
    assert pages(tmp_path, a='<h1 id="top">A</h1>') == [
        "assets/search.js: a.html#none leads to nothing"
    ]


def test_an_empty_folder_is_no_site(tmp_path):
    assert "holds no HTML pages" in pages(tmp_path)[0]
