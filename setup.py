"""Builds oodnb from settings.ini, the one place where version, requirements and entry points
stand."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.absolute()
SHIPPED = ("mini", "mini3", "lists", "protocols", "published", "reproduced")
SHIPPED_FILES = ("claims.csv", "premises.csv")

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
readme = ROOT / "README.md"


class BuildWithData(build_py):
    """Puts what ships from data/ into the package as oodnb/shipped; an editable install reads data/
    itself."""

    def run(self):
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        (package / settings["lib_path"] / "py.typed").touch()  # its annotations are for others too
        if self.editable_mode:
            return
        for name in SHIPPED:
            if (ROOT / "data" / name).is_dir():
                self.copy_tree(
                    str(ROOT / "data" / name),
                    str(Path(self.build_lib) / settings["lib_path"] / "shipped" / name),
                )
        for name in SHIPPED_FILES:
            self.copy_file(
                str(ROOT / "data" / name),
                str(Path(self.build_lib) / settings["lib_path"] / "shipped" / name),
            )


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text("utf-8") if readme.is_file() else settings["description"],
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    # code; drawings, lists and a dictionary of others, see the files beside them
    license_expression="Apache-2.0 AND CC-BY-3.0 AND CC-BY-4.0 AND MIT AND LicenseRef-WordNet-3.0",
    license_files=["LICENSE", "data/*/ATTRIBUTION.md", "data/*/WORDNET-COPYRIGHT.txt"],
    keywords=settings["keywords"],
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    cmdclass={"build_py": BuildWithData},
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={
        key.removesuffix("_requirements"): value.split()
        for key, value in settings.items()
        if key.endswith("_requirements")
    },
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_path']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Framework :: Jupyter",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(
            f"Programming Language :: Python :: {version}"
            for version in ("3", "3.11", "3.12", "3.13")
        ),
    ],
    zip_safe=False,
)
