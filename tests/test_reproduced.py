"""`oodnb run` beside accepted rows, in a small checkout of its own: equal, different, accepted on
purpose, and what git sees of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from papers import COLUMNS, write

import oodnb

ROOT = Path(oodnb.__file__).parents[1]
CELL = f"""from pathlib import Path
line = "locoop,demo,mcm,mini,mini,{{}},{{}},{{}},oodnb,,,mini,"
values = (("auroc", 60.0), ("fpr95_id_positive", 90.0))
rows = [line.format(d, m, v) for d in ("mini-near", "mini-far") for m, v in values]
lines = ["{COLUMNS}", *(row + Path(out).name for row in rows)]
(Path(out) / "rows.csv").write_text("\\n".join(lines) + "\\n")
lines = ["detector,dataset,auroc,auroc_low", "mcm,mini-near,60.0,58.5", "mcm,mini-far,60.0,58.5"]
(Path(out) / "metrics.csv").write_text("\\n".join(lines) + "\\n")
(Path(out) / "plot.svg").write_text("<svg/>")"""


@pytest.fixture(scope="module")
def accepted_checkout(tmp_path_factory):
    """A checkout with one paper notebook, its rows accepted and committed."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "oodnb", root / "oodnb", ignore=shutil.ignore_patterns("__pycache__", "shipped")
    )
    shutil.copytree(ROOT / "data" / "published", root / "data" / "published")
    for name in ("nbs/papers", "data/reproduced/metrics", "figures"):
        (root / name).mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", root)
    shutil.copy(ROOT / ".gitignore", root)
    write(root / "nbs" / "papers" / "demo.ipynb", CELL)
    git(root, "init", "-q")
    code, said = command(root, "run", "demo", "--accept")
    assert (
        code == 0
        and (
            "accepted data/reproduced/demo.csv, data/reproduced/metrics/demo.csv, "
            "figures/demo_plot.svg"
        )
        in said
    )
    git(root, "add", "-A")
    git(root, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "accepted")
    return root


@pytest.fixture
def checkout(accepted_checkout, tmp_path):
    return Path(shutil.copytree(accepted_checkout, tmp_path / "checkout"))


def git(root, *words):
    return subprocess.run(
        ["git", *words], cwd=root, check=True, capture_output=True, text=True
    ).stdout


def command(root, *words):
    done = subprocess.run(
        [sys.executable, "-m", "oodnb.reproduce", *words],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def rewrite(path, *pairs):
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def test_equal_rows_leave_the_checkout_as_it_is(checkout):
    code, said = command(checkout, "run", "demo")
    assert (
        code == 0
        and "nothing to do" in said
        and "demo: equal to the accepted rows: largest difference 0\n" in said
    )
    # other code, hence another key and another folder, and numbers that differ as between two
    # machines
    rewrite(
        checkout / "nbs" / "papers" / "demo.ipynb",
        ("60.0", "60.004"),
        ('\\"fpr95_id_positive\\", 90.0', '\\"fpr95_id_positive\\", 90.1'),
    )
    git(
        checkout,
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@example.org",
        "commit",
        "-qam",
        "another machine",
    )
    code, said = command(checkout, "run", "demo")
    assert (
        code == 0
        and "done in" in said
        and (
            "demo: equal to the accepted rows: largest difference 0.1 (rows / locoop / demo "
            "/ mcm / mini"
        )
        in said
    )
    assert git(checkout, "status", "--porcelain") == ""


def test_other_rows_are_listed_and_the_exit_code_says_so(checkout):
    table = checkout / "data" / "reproduced" / "demo.csv"
    rewrite(
        table,
        ("mini-near,auroc,60.0", "mini-near,auroc,60.2"),
        ("mini-far,fpr95_id_positive,90.0", "mini-far,fpr95_id_positive,80.0"),
    )
    code, said = command(checkout, "run", "demo")
    assert code == 4 and "2 of 8 numbers differ from the accepted rows, worst first:" in said
    worst, next_one = [line for line in said.splitlines() if " apart, " in line]
    assert (
        "mini-far / mini / fpr95_id_positive: accepted 80, now 90 (10 apart, 0.5 allowed)" in worst
    )
    assert "mini-near / mini / auroc: accepted 60.2, now 60 (0.2 apart, 0.05 allowed)" in next_one
    assert "oodnb: demo: not reproduced." in said and "oodnb run demo --accept" in said
    assert git(checkout, "status", "--porcelain").split() == ["M", "data/reproduced/demo.csv"]

    code, said = command(checkout, "run", "demo", "--accept")
    assert code == 0 and "accepted data/reproduced/demo.csv" in said
    assert git(checkout, "status", "--porcelain") == ""
    assert command(checkout, "run", "demo")[0] == 0


def test_missing_and_additional_rows_differ(checkout):
    table = checkout / "data" / "reproduced" / "demo.csv"
    rewrite(table, ("mini-far,auroc", "mini-other,auroc"))
    code, said = command(checkout, "run", "demo")
    assert code == 4
    assert (
        "mini-other / mini / auroc: accepted, but not made by this run" in said
        and "mini-far / mini / auroc: new, nothing like it was accepted" in said
    )


def test_intervals_count_too_and_long_lists_are_cut(checkout):
    rewrite(checkout / "data" / "reproduced" / "metrics" / "demo.csv", ("58.5", "57.0"))
    assert (
        "metrics / mcm / mini-near / auroc_low: accepted 57, now 58.5"
        in command(checkout, "run", "demo")[1]
    )
    many = (
        "\n".join(
            f"locoop,demo,mcm,mini,mini,mini-{i},auroc,60.0,oodnb,,,mini,x" for i in range(30)
        )
        + "\n"
    )
    with open(checkout / "data" / "reproduced" / "demo.csv", "a") as file:
        file.write(many)
    code, said = command(checkout, "run", "demo")
    assert code == 4 and said.count("\n  rows / ") == 10 and "  and 22 more\n" in said


def test_what_several_seeds_scatter_is_allowed_in_part(checkout):
    """A fifth of the deviation over seeds, for the value and for the deviation itself."""
    table = checkout / "data" / "reproduced" / "demo.csv"
    own = next((checkout / "runs" / "demo").glob("*/rows.csv"))
    for path in (table, own):
        rewrite(path, ("mini-near,auroc,60.0,oodnb,,,", "mini-near,auroc,60.0,oodnb,2.0,1;2;3,"))
    rewrite(table, ("mini-near,auroc,60.0,oodnb,2.0,", "mini-near,auroc,60.3,oodnb,2.1,"))
    assert command(checkout, "run", "demo")[0] == 0
    rewrite(table, ("mini-near,auroc,60.3", "mini-near,auroc,60.5"))
    code, said = command(checkout, "run", "demo")
    assert code == 4 and "(0.5 apart, 0.42 allowed)" in said


def test_other_parameters_are_compared_with_nothing(checkout):
    code, said = command(checkout, "run", "demo", "-p", "seed", "3")
    assert code == 0 and "accepted" not in said


def test_status_says_what_has_changed(checkout):
    assert command(checkout, "run", "demo", "--force")[0] == command(checkout, "status")[0] == 0
    rewrite(
        checkout / "nbs" / "papers" / "demo.ipynb",
        (
            "from pathlib import Path",
            "from pathlib import Path\\nfrom oodnb.measure.roc import roc_counts",
        ),
    )
    code, said = command(checkout, "status", "demo")
    assert (
        code == 3
        and said.splitlines()[-1].endswith("notebook, oodnb.measure, oodnb.measure.roc changed")
        and " outdated " in said
    )
