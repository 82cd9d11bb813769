"""What leaves the repository: wheel and source distribution, what they hold, and that they work without the checkout."""

import configparser
import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "figures")


def run(*command, **options):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Sdist and the wheel built from that sdist, with the tools that are already installed."""
    source, out = tmp_path_factory.mktemp("source") / "oodnb", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    run("-m", "build", "--no-isolation", "--outdir", out, source)
    return out


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel_names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed, and an environment that sees it instead of the checkout."""
    target = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    return dict(cwd=target.parent, env=os.environ | dict(PYTHONPATH=str(target), OODNB_HOME=str(target.parent / "home")))


def shipped_files():
    return {path.relative_to(ROOT).as_posix() for name in ("mini", "lists", "published", "reproduced") for path in (ROOT / "data" / name).rglob("*") if path.is_file() and path.name != ".DS_Store"}


def test_wheel_holds_every_module_and_what_ships(wheel_names):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "oodnb").rglob("*.py")}
    data = {f"oodnb/{name}" for name in shipped_files()}
    assert data and modules <= wheel_names and data <= wheel_names
    assert {name for name in wheel_names if not name.startswith(("oodnb/", "oodnb-"))} == set()


def test_wheel_and_sdist_hold_no_reference_cases(built, wheel_names):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        sdist_names = {name.partition("/")[2] for name in archive.getnames()}
    for names in (wheel_names, sdist_names):
        assert not [name for name in names if "reference" in name or name.endswith((".npz", ".pyc")) or "tests/" in name]
    assert shipped_files() | {"settings.ini", "setup.py", "pyproject.toml", "LICENSE", "CHANGELOG.md"} <= sdist_names


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    [folder] = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("oodnb", SETTINGS["version"], ">=3.11")
    assert "Apache-2.0" in (metadata["License-Expression"] or metadata["License"]) and any(name.endswith("LICENSE") for name in archive.namelist())
    assert {"dev", "blip"} <= set(metadata.get_all("Provides-Extra"))
    required = [line.split(";")[0] for line in metadata.get_all("Requires-Dist") if "extra" not in line]
    assert len(required) == len(SETTINGS["requirements"].split()) and not any(name.startswith(("nbdev", "fastcore")) for name in required)
    assert "oodnb=oodnb.reproduce:main" in archive.read(f"{folder}/entry_points.txt").decode().replace(" ", "")


def test_the_installed_wheel_finds_its_data(installed):
    code = "import oodnb; from oodnb.paths import shipped; print(oodnb.__file__); print(shipped('published'))"
    module, published = run("-c", code, **installed).split("\n")[:2]
    assert str(ROOT) not in module and Path(published) == Path(module).parent / "data" / "published" and any(Path(published).glob("*.csv"))


def test_importing_the_package_is_free():
    code = "import sys; before = set(sys.modules); import oodnb; print(sorted(name for name in set(sys.modules) - before if not name.startswith('oodnb')))"
    assert run("-c", code, cwd=ROOT).strip() == "[]"


def test_metrics_need_only_numpy():
    code = "import sys, oodnb.metrics; print([name for name in ('torch', 'scipy', 'pandas', 'matplotlib', 'sklearn', 'fastcore', 'nbdev') if name in sys.modules])"
    assert run("-c", code, cwd=ROOT).strip() == "[]"


def test_no_module_needs_the_development_tools():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "oodnb").rglob("[!_]*.py"))]
    code = f"import importlib, sys; sys.modules.update(dict.fromkeys(('nbdev', 'fastcore', 'execnb', 'pytest', 'sklearn', 'hypothesis'))); [importlib.import_module(name) for name in {modules}]"
    run("-c", code, cwd=ROOT)


def test_settings_have_no_comments():
    """nbdev rewrites settings.ini when the version changes, and comments would be lost."""
    assert not [line for line in (ROOT / "settings.ini").read_text("utf-8").splitlines() if line.lstrip().startswith(("#", ";"))]
