"""Every default of every settings class is the published one, or says in what it differs."""

import dataclasses
import importlib
import pkgutil

import pytest

import oodnb
from oodnb.evidence.protocol import protocol_faults, published_protocol
from oodnb.methods.toe import TextNoise, VirtualOutliers


def _settings_classes():
    found = {}
    for module in pkgutil.walk_packages(oodnb.__path__, "oodnb."):
        names = vars(importlib.import_module(module.name)) if "__main__" not in module.name else {}
        for name, value in names.items():
            if name.endswith("Settings") and dataclasses.is_dataclass(value):
                found[name] = value
    return found


SETTINGS = _settings_classes() | {kind.__name__: kind for kind in (TextNoise, VirtualOutliers)}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_default_is_the_published_one(name):
    assert protocol_faults(SETTINGS[name]) == []


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_settings_cannot_be_changed_in_place(name):
    settings = SETTINGS[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, dataclasses.fields(settings)[0].name, 1)


def test_no_line_of_the_tables_is_about_nothing():
    known = {
        (name, field.name) for name, kind in SETTINGS.items() for field in dataclasses.fields(kind)
    }
    table = published_protocol()
    # lines about arguments of functions are held by test_more_protocol
    table = table[[name[0].isupper() for name in table["settings"]]]
    named = set(zip(table["settings"], table["field"]))
    assert len(named) == len(table)
    assert named <= known, named - known
