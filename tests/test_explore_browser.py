"""JupyterLab in a real browser: nbs/explore.ipynb is opened and run, controls are moved, and the
page is read."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[1]
BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
PATIENCE = 240  # seconds for the page to be run; about 20 on an idle laptop

pytestmark = [
    pytest.mark.skipif(
        BROWSER is None, reason="no browser on this machine; on Debian: apt-get install chromium"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="no playwright in this environment: pip install playwright",
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab whose only notebook is a copy of the page."""
    folder, runtime = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("runtime")
    shutil.copy(ROOT / "nbs" / "explore.ipynb", folder / "explore.ipynb")
    environment = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(runtime / "config"),
        "JUPYTERLAB_WORKSPACES_DIR": str(runtime / "workspaces"),
        "PYTHONPATH": str(ROOT),
    }
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
        "--IdentityProvider.token=explore",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with open(runtime / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *options],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield wait_for_address(server, runtime)
        finally:
            server.terminate()
            server.wait(30)


def wait_for_address(server, runtime):
    for _ in range(600):
        time.sleep(0.2)
        assert server.poll() is None, (runtime / "lab.log").read_text()[-2000:]
        for path in runtime.glob("jpserver-*.json"):
            try:
                address = json.loads(path.read_text())["url"]
                urlopen(f"{address}api?token=explore", timeout=5).close()
                return address
            except (OSError, ValueError):
                pass
    raise AssertionError("JupyterLab did not start: " + (runtime / "lab.log").read_text()[-2000:])


@pytest.fixture(scope="module")
def page(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"{lab}lab/tree/explore.ipynb?token=explore&reset")
        page.locator(".jp-Notebook").wait_for()
        page.wait_for_selector(
            '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        )  # JupyterLab drops the wish while the kernel starts
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.get_by_text("Run", exact=True).first.click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_function(
            "document.querySelectorAll('.oodnb-says').length == 4 || "
            'document.querySelector(\'[data-mime-type="application/vnd.jupyter.stderr"] '
            "pre, .jp-RenderedText pre .ansi-red-fg')"
        )
        yield page
        if folder := os.environ.get("OODNB_SCREENSHOTS"):
            for k, explorer in enumerate(
                page.locator(".jp-OutputArea-child:has(.oodnb-says)").all()
            ):
                explorer.scroll_into_view_if_needed()
                explorer.screenshot(path=str(Path(folder) / f"explorer_{k + 1}.png"))
            page.screenshot(path=str(Path(folder) / "lab.png"))
        browser.close()


def says(page, k):
    return page.locator(".oodnb-says").nth(k).inner_text()


def changed(page, k, before):
    """What the k-th explorer says once it says something else."""
    page.wait_for_function(
        "([k, before]) => document.querySelectorAll('.oodnb-says')[k].innerText != before",
        arg=[k, before],
    )
    return says(page, k)


def explorer(page, k):
    return page.locator(".jp-OutputArea-child:has(.oodnb-says)").nth(k)


def slider(page, k, label):
    return (
        explorer(page, k)
        .locator(".widget-hslider", has_text=re.compile(f"^{re.escape(label)}"))
        .locator(".noUi-handle")
    )


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def test_the_page_shows_four_explorers(page):
    assert page.locator(".oodnb-says").count() == 4
    assert page.locator(".jp-OutputArea-child:has(.oodnb-says) img").count() >= 4
    assert not page.locator(
        ".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"
    ).count()


def test_the_line_follows_the_slider(page):
    before = says(page, 0)
    assert number(r"positives: ([\d.]+) % of them are accepted", before) == pytest.approx(
        95, abs=0.3
    )
    handle = slider(page, 0, "ID accepted")
    handle.focus()
    for _ in range(10):
        handle.press("ArrowLeft")
    page.wait_for_function(
        "document.querySelectorAll('.oodnb-says')[0].innerText.includes('90.0 % of them "
        "are accepted')"
    )
    after = says(page, 0)
    price = r"accepted, and ([\d.]+) % of the OOD"
    assert number(price, after) < number(price, before)


def test_a_larger_k_leaves_fewer_regions(page):
    before = says(page, 1)
    handle = slider(page, 1, "K")
    handle.focus()
    handle.press("PageUp")
    after = changed(page, 1, before)
    count = r"^(\d+) of 64 regions"
    assert number(count, after) <= number(count, before)
    assert page.locator(".oodnb-time").nth(1).inner_text().endswith("ms")


def test_names_are_typed_freely(page):
    before = says(page, 2)
    names = explorer(page, 2).locator("textarea")
    names.fill("a castle, a ship, a banana")
    names.blur()
    assert "no line is drawn" in changed(page, 2, before)


def test_forgetting_is_undone(page):
    before = says(page, 3)
    assert before.startswith("Forgotten: cow")
    explorer(page, 3).get_by_role("button", name="undo").click()
    assert changed(page, 3, before).startswith("Nothing is forgotten")
