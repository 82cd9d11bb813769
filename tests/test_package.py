"""What leaves the repository: wheel and source distribution, what they hold and need, and that they
work without the checkout."""

import ast
import configparser
import email
import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
SHIPPED = ("mini", "mini3", "lists", "protocols", "published", "reproduced")
LEFT_OUT = shutil.ignore_patterns(
    ".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "figures"
)
HEAVY = (
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "transformers",
    "scipy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "IPython",
    "ipywidgets",
    "distributed",
)
# needed without being imported: the kernel of every run is started with `python -m`, JupyterLab is
# where the notebooks are read, torchvision reads PCAM with h5py
RUN_NOT_IMPORTED = {"ipykernel", "jupyterlab", "h5py", "cryptography"}
# comes with another one that is asked for
COMES_WITH = {
    "IPython": "ipykernel",
    "fastcore": "nbdev",
    "dask": "distributed",
    "psutil": "distributed",
}


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def python(*command, **options):
    return run(sys.executable, *command, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A clean copy of the repository."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "oodnb", ignore=LEFT_OUT))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """Sdist and the wheel built from that sdist, with the tools that are already installed."""
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", out, source)
    return out


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel):
    [name] = [name for name in contents(wheel) if name.endswith("/METADATA")]
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(name))


@pytest.fixture(scope="module")
def sdist_names(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def contents(wheel):
    """File name → checksum of what is in it."""
    return {entry.filename: entry.CRC for entry in zipfile.ZipFile(wheel).infolist()}


def modules():
    return sorted(
        path for path in (ROOT / "oodnb").rglob("*.py") if "__pycache__" not in path.parts
    )


def shipped_files():
    return {
        path.relative_to(ROOT).as_posix()
        for name in SHIPPED
        for path in (ROOT / "data" / name).rglob("*")
        if path.is_file() and path.name != ".DS_Store"
    } | {"data/claims.csv", "data/premises.csv"}


# what is in it


def test_the_wheel_holds_the_modules_and_what_ships_and_nothing_else(wheel):
    own = {
        name
        for name in contents(wheel)
        if not name.startswith(f"oodnb-{SETTINGS['version']}.dist-info/")
    }
    assert own == {path.relative_to(ROOT).as_posix() for path in modules()} | {
        f"oodnb/shipped/{name.removeprefix('data/')}" for name in shipped_files()
    } | {"oodnb/py.typed"}
    assert {
        "oodnb/shipped/mini/sprites.parquet",
        "oodnb/shipped/mini/clip.safetensors",
        "oodnb/shipped/lists/datasets.json",
        "oodnb/shipped/published/locoop.csv",
    } <= own


def test_the_sdist_holds_what_ships_and_no_tests_or_notebooks(sdist_names):
    assert (
        shipped_files()
        | {"settings.ini", "setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"}
        <= sdist_names
    )
    tops = {name.split("/")[0] for name in sdist_names}
    assert tops <= {
        "oodnb",
        "oodnb.egg-info",
        "data",
        "settings.ini",
        "setup.py",
        "setup.cfg",
        "pyproject.toml",
        "MANIFEST.in",
        "PKG-INFO",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    }
    assert not [
        name for name in sdist_names if "reference" in name or name.endswith((".npz", ".pyc"))
    ]


def test_repository_and_sdist_make_the_same_wheel(source, wheel, tmp_path):
    python("-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, source)
    assert contents(next(tmp_path.glob("*.whl"))) == contents(wheel)


def test_the_wheel_stays_small(wheel):
    assert wheel.stat().st_size < 40e6


def test_every_shipped_file_of_others_has_its_licence_beside_it(wheel, metadata):
    assert metadata["License-Expression"] == (
        "Apache-2.0 AND CC-BY-3.0 AND CC-BY-4.0 AND MIT AND LicenseRef-WordNet-3.0"
    )
    assert set(metadata.get_all("License-File")) == {
        "LICENSE",
        "data/mini/ATTRIBUTION.md",
        "data/mini3/ATTRIBUTION.md",
        "data/lists/ATTRIBUTION.md",
        "data/mini3/WORDNET-COPYRIGHT.txt",
    }
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    told = (ROOT / "data/lists/ATTRIBUTION.md").read_text("utf-8")
    assert not [
        path.name for path in (ROOT / "data/lists").glob("*.json") if f"`{path.name}`" not in told
    ]
    told = (ROOT / "data/mini/ATTRIBUTION.md").read_text("utf-8")
    assert not [
        artist
        for artist in json.loads((ROOT / "data/mini/concepts.json").read_text("utf-8"))["artists"]
        if f"| {artist} |" not in told
    ]
    told += (ROOT / "data/mini3/ATTRIBUTION.md").read_text("utf-8")
    table = (ROOT / "data/mini3/drawings.csv").read_text("utf-8")
    artists = {row.split(",")[1] for row in table.splitlines()[1:]}
    assert len(artists) == 22 and not [name for name in artists if f"| {name} |" not in told]


def test_metadata(wheel, metadata):
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == (
        "oodnb",
        SETTINGS["version"],
        ">=3.11",
    )
    assert [
        line.rpartition(" ")[2] for line in metadata.get_all("Classifier") if "Python :: 3." in line
    ] == ["3.11", "3.12", "3.13"]
    assert {"blip", "dev"} <= set(metadata.get_all("Provides-Extra"))
    required = [line for line in metadata.get_all("Requires-Dist") if "extra" not in line]
    assert len(required) == len(SETTINGS["requirements"].split()) and not any(
        name.startswith(("nbdev", "fastcore")) for name in required
    )
    [entry_points] = [name for name in contents(wheel) if name.endswith("/entry_points.txt")]
    assert "oodnb=oodnb.command.main:main" in zipfile.ZipFile(wheel).read(
        entry_points
    ).decode().replace(" ", "")


# what it needs


def spelled(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def required(*extras):
    """Names of the distributions that settings.ini asks for, in the base and in some extras."""
    lines = " ".join(
        SETTINGS[key] for key in ("requirements", *(f"{extra}_requirements" for extra in extras))
    )
    return {spelled(re.match(r"[\w.-]+", line)[0]) for line in lines.split()}


def all_extras():
    return [key.removesuffix("_requirements") for key in SETTINGS if key.endswith("_requirements")]


def imported(tree):
    """Packages that code imports, by statement or with `importlib.import_module` and a written
    name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value.split(".")[0]


def third_party(trees):
    """Packages of others → distributions that may bring them."""
    brought, found = (
        importlib.metadata.packages_distributions(),
        {name for tree in trees for name in imported(tree)},
    )
    return {
        name: {spelled(COMES_WITH.get(name, other)) for other in brought.get(name, [name])}
        for name in found - set(sys.stdlib_module_names) - {"oodnb"}
    }


@functools.cache
def package_trees():
    return [ast.parse(path.read_text("utf-8")) for path in modules()]


@functools.cache
def notebook_code():
    """(notebook, code) of every code cell without magics."""
    return list(_notebook_code())


def _notebook_code():
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                yield (
                    path.name,
                    "\n".join(
                        line
                        for line in "".join(cell["source"]).splitlines()
                        if not line.lstrip().startswith(("%", "!"))
                    ),
                )


def test_everything_the_package_imports_is_required():
    extras = [extra for extra in all_extras() if extra != "dev"]
    assert {
        name: brought
        for name, brought in third_party(package_trees()).items()
        if not brought & required(*extras)
    } == {}


def test_everything_that_is_required_is_used():
    used = {
        name for brought in third_party(package_trees()).values() for name in brought
    } | RUN_NOT_IMPORTED
    assert required("blip", "data", "scale") - used == set()


def test_everything_the_notebooks_import_is_in_an_extra():
    trees = [
        ast.parse(code) for name, code in notebook_code() if name != "mini_sprites.ipynb"
    ]  # which says itself what drawing the sprites again needs
    assert {
        name: brought
        for name, brought in third_party(trees).items()
        if not brought & required(*all_extras())
    } == {}


def test_every_requirement_has_a_lower_bound():
    lines = [
        line
        for key in ("requirements", *(f"{extra}_requirements" for extra in all_extras()))
        for line in SETTINGS[key].split()
    ]
    assert [line for line in lines if not re.search(r"[>=]=\d", line)] == []


# on every supported Python


def test_the_code_is_python_3_11_without_warnings():
    """3.12 and 3.13 complain aloud about what 3.11 lets pass, such as unknown escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, code in [
            *((path.name, path.read_text("utf-8")) for path in modules()),
            *notebook_code(),
        ]:
            compile(
                ast.parse(code, name, feature_version=(3, 11)),
                name,
                "exec",
                ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            )


def test_nothing_is_imported_that_left_the_standard_library():
    left = (
        "aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp "
        "lib2to3 mailcap msilib nis nntplib ossaudiodev pipes smtpd sndhdr spwd sunau "
        "telnetlib uu xdrlib"
    ).split()
    trees = [
        *package_trees(),
        *(
            ast.parse(path.read_text("utf-8"))
            for folder in ("tests", "tools", "benchmarks")
            for path in (ROOT / folder).rglob("*.py")
        ),
    ]
    assert {name for tree in trees for name in imported(tree)} & set(left) == set()


# at work, without the checkout

USE_IT = """
import oodnb
from oodnb.backbones import load_backbone
from oodnb.datasets import load_dataset
from oodnb.detectors import zero_shot
from oodnb.features import extract
from oodnb.ground.places import shipped
from oodnb.reproduce import main

model, pictures = load_backbone("mini"), load_dataset("mini").subset(range(12))
[mcm] = zero_shot(model, pictures.class_names, scores=("mcm",))
scores = mcm.score(extract(model, pictures, progress=False))
assert len(scores) == 12 and 0 < scores.min() <= scores.max() <= 1
assert main(["table", "zeroshot_imagenet"]) == main(["doctor", "--images", "60"]) == 0
print(oodnb.__file__, shipped("published"))
"""


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel; what it requires is borrowed from the interpreter of the
    tests, the checkout is not."""
    folder = tmp_path_factory.mktemp("installed")
    python("-m", "venv", "--without-pip", folder / "venv")
    python(
        "-m",
        "pip",
        "--python",
        folder / "venv/bin/python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    )
    [site] = (folder / "venv/lib").glob("python3*/site-packages")
    (site / "borrowed.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
    return folder


@pytest.fixture(scope="module")
def work(installed):
    """Runs a program of the environment, in an empty folder."""
    return worker(installed / "venv/bin", installed / "empty")


def worker(programs, folder):
    folder.mkdir()
    unset = ("PYTHONPATH", "OODNB_DATA", "PYTHONHOME")
    env = {key: value for key, value in os.environ.items() if key not in unset} | dict(
        OODNB_HOME=str(folder / "home"),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1",
    )
    return lambda program, *words: run(programs / program, *words, cwd=folder, env=env)


def use_it(work):
    """What a newcomer does with an installed wheel."""
    assert work("oodnb", "--version").strip().endswith(SETTINGS["version"])
    assert "NINCO" in work("oodnb", "data", "list")
    told = work("python", "-c", USE_IT)
    assert "| energy |" in told and "0 faults found" in told
    module, published = told.splitlines()[-1].split()
    assert (
        str(ROOT) not in module and Path(published) == Path(module).parent / "shipped" / "published"
    )


def test_an_installed_wheel_works_without_the_checkout(work):
    use_it(work)


def test_an_installed_wheel_says_where_the_paper_notebooks_are(work):
    code = "from oodnb.reproduce import main; print(main(['list']))"
    assert (
        work(
            "python",
            "-c",
            f"import contextlib, sys\nwith contextlib.redirect_stderr(sys.stdout): {code}",
        ).splitlines()[-1]
        == "2"
    )


@pytest.mark.skipif(
    "OODNB_CLEAN_PYTHON" not in os.environ,
    reason="installs everything from the index: OODNB_CLEAN_PYTHON=python of an empty environment",
)
def test_pip_installs_the_wheel_with_all_it_needs(wheel, tmp_path):
    clean = Path(os.environ["OODNB_CLEAN_PYTHON"]).absolute()
    run(clean, "-m", "pip", "install", "--quiet", wheel)
    run(clean, "-m", "pip", "check")
    use_it(worker(clean.parent, tmp_path / "empty"))


# light to import


def loaded_by(code):
    return set(
        json.loads(
            python(
                "-c",
                (
                    "import json, sys; before = "
                    f"set(sys.modules)\n{code}\nprint(json.dumps(sorted(set(sys.modules) - "
                    "before)))"
                ),
                cwd=ROOT,
            ).splitlines()[-1]
        )
    )


def test_importing_the_package_is_free():
    assert {name.partition(".")[0] for name in loaded_by("import oodnb")} <= {
        "oodnb",
        *sys.stdlib_module_names,
    }


def test_the_front_page_offers_what_it_names():
    import oodnb

    assert oodnb.__version__ == SETTINGS["version"] and oodnb.__doc__.startswith(
        "Out-of-distribution detection"
    )
    assert set(oodnb.__all__) == set(oodnb._HOMES) <= set(dir(oodnb))
    assert all(getattr(oodnb, name).__name__ == name for name in oodnb.__all__)
    assert not set(oodnb.__all__) & {
        path.stem for path in modules()
    }  # an import of the module would replace the name
    with pytest.raises(
        AttributeError, match="has no attribute 'load_model'; it offers OODClassifier, auroc, "
    ):
        oodnb.load_model  # noqa: B018


@pytest.mark.parametrize(("module", "allowed"), [
    ("oodnb.metrics", ()),
    ("oodnb.ground.places", ()),
    ("oodnb.scores", ("torch",)),
    ("oodnb.losses", ("torch",)),
    ("oodnb.reproduce", ("pandas", "pyarrow")),
])  # fmt: skip
def test_light_modules_stay_light(module, allowed):
    assert loaded_by(f"import {module}") & set(HEAVY) <= set(allowed)


def test_the_command_helps_without_loading_a_model():
    code = "from oodnb.reproduce import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded_by(code) & set(HEAVY) <= {"pandas", "pyarrow"}


def test_no_module_needs_the_development_tools():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in modules()
        if not path.name.startswith("_")
    ]
    code = (
        "import importlib, sys; sys.modules.update(dict.fromkeys(('nbdev', 'fastcore', "
        "'execnb', 'pytest', 'sklearn', 'hypothesis'))); [importlib.import_module(name) "
        f"for name in {names}]"
    )
    python("-c", code, cwd=ROOT)


def test_settings_have_no_comments():
    """nbdev rewrites settings.ini when the version changes, and comments would be lost."""
    assert not [
        line
        for line in (ROOT / "settings.ini").read_text("utf-8").splitlines()
        if line.lstrip().startswith(("#", ";"))
    ]
