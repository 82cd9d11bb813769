"""The lists of the forgetting experiments on the mini world follow the rules that are written in
them."""

import json

import pytest

from oodnb.backbones import load_backbone
from oodnb.datasets import load_dataset
from oodnb.forget.evaluation import class_accuracy, recognise
from oodnb.methods.forget import protocol_recipe
from oodnb.mini import GROUPS, load_concepts
from oodnb.ground.places import shipped

MINI, PROTOCOL, ATTACKS = (
    json.loads(shipped("lists", f"forget_{name}.json").read_text("utf-8"))
    for name in ("mini", "protocol", "attacks")
)


@pytest.mark.parametrize("dataset", MINI["dataset_order"])
def test_forgotten_classes_are_chosen_by_the_rule(dataset):
    seen = recognise(
        load_backbone("mini", device="cpu"),
        load_dataset(dataset, MINI["rule"]["split"]),
        MINI["eval_templates"][dataset],
        progress=False,
    )
    recall, count = (
        class_accuracy(seen.predictions, seen.labels, len(seen.class_names)),
        len(seen.class_names),
    )
    chosen = [
        next(
            seen.class_names[k]
            for k in range(int(count * share), count)
            if recall[k] >= MINI["rule"]["recall"]
        )
        for share in MINI["rule"]["positions"]
    ]
    assert chosen == MINI["forget_classes"][dataset]


@pytest.mark.parametrize("dataset", MINI["dataset_order"])
def test_preserved_names(dataset):
    known, classes = {c.name for c in load_concepts()}, load_dataset(dataset, "val").class_names
    names, more, gone = (
        MINI["preserve"][dataset],
        MINI["preserve_long"][dataset],
        MINI["forget_classes"][dataset],
    )
    assert (
        len(set(names)) == len(names)
        and len(set(more)) == len(more)
        and set(names) | set(more) <= known
    )
    assert not set(gone) & (set(names) | set(more)) and not set(more) & set(
        load_dataset("mini", "val").class_names
    )
    assert (
        len(set(names) & set(classes))
        == {"mini-animals": 12, "mini-food": 7, "mini-vehicles": 0, "mini-objects": 2}[dataset]
    )


def test_the_groups_are_the_mini_world():
    mini, parts = load_dataset("mini", "val"), {name: load_dataset(name, "val") for name in GROUPS}
    assert sorted(i for part in parts.values() for i in part.ids) == sorted(mini.ids)
    of = dict(zip(mini.ids, mini.labels))
    assert all(
        part.class_names[k] == mini.class_names[of[i]]
        for part in parts.values()
        for i, k in zip(part.ids, part.labels)
    )


def test_weights():
    assert (
        protocol_recipe("mini-food", "mini").forget_weight == 3
        and protocol_recipe("mini-food", "mini", 3).forget_weight == 10
    )
    assert protocol_recipe("StanfordDogs", "ViT-B-16-quickgelu").preserve_weight == 0.3


@pytest.mark.parametrize("lists", [MINI, PROTOCOL], ids=["mini", "paper"])
def test_attack_texts(lists):
    for dataset, names in lists["forget_classes"].items():
        assert list(ATTACKS[dataset]) == names
        taken = {
            n.casefold()
            for n in (load_dataset(dataset, "val").class_names if dataset in GROUPS else names)
        }
        for name, texts in ATTACKS[dataset].items():
            assert (
                len(set(texts)) == len(texts) >= 3 and not {t.casefold() for t in texts} & taken
            ), name
