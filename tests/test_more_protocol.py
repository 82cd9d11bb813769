"""Methods with fewer than five settings have no settings class: their defaults are held against the
published protocol here."""

import inspect
import json

import pytest

from oodnb.detectors import threshold_at_tpr, zero_shot
from oodnb.evidence.protocol import published_protocol
from oodnb.methods.knn import fit_knn
from oodnb.methods.mahalanobis import fit_mahalanobis
from oodnb.methods.react import fit_react
from oodnb.methods.vim import fit_vim

FITS = (fit_knn, fit_mahalanobis, fit_vim, fit_react, zero_shot, threshold_at_tpr)
# data, names of columns, and what is drawn again for each seed
NO_SETTINGS = {"scores", "seed", "name", "prefix", "suffix"}


def lines_of(fit):
    table = published_protocol()
    return table[table["settings"] == fit.__name__].set_index("field").to_dict("index")


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
def test_every_default_stands_in_the_table(fit):
    given = inspect.signature(fit).parameters.values()
    settings = {p.name: p.default for p in given if p.default is not p.empty}
    settings = {name: value for name, value in settings.items() if name not in NO_SETTINGS}
    assert settings.keys() == lines_of(fit).keys()
    for name, facts in lines_of(fit).items():
        if facts["published"]:
            assert settings[name] == json.loads(facts["published"]), name
        else:
            assert facts["note"].startswith("of oodnb:"), name


def test_no_line_is_about_another_function():
    table = published_protocol()
    functions = {name for name in table["settings"] if name[0].islower()}
    assert functions == {fit.__name__ for fit in FITS}
