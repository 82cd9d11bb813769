"""Every detector of the library survives a file: bit by bit, with its line, and no file that is
broken, foreign or of another backbone is taken for one."""

import dataclasses
import importlib
import json
import pkgutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import oodnb
from oodnb.backbones import load_backbone
from oodnb.detectors import TextDetector, threshold_at_tpr, threshold_from_texts, zero_shot
from oodnb.features import Features
from oodnb.methods.clipn import CLIPNDetector
from oodnb.methods.hftt import HFTTDetector, load_hftt, save_hftt
from oodnb.methods.knn import KNNDetector, fit_knn
from oodnb.methods.mahalanobis import MahalanobisDetector, fit_mahalanobis
from oodnb.methods.neglabel import NegLabelDetector, NegLabelSettings, neglabel
from oodnb.methods.react import ReActDetector, fit_react
from oodnb.methods.toe import TOEDetector, TOESettings, fit_toe, load_toe, save_toe
from oodnb.methods.vim import ViMDetector, fit_vim
from oodnb.ground.kept import load_kept, save_kept
from oodnb.prompts import PromptContext
from oodnb.saved import KINDS, Decider, describe_detector, load_detector, save_detector

NAMES = ["cat", "dog", "bird"]
SCORES = ("mcm", "l_mcm", "gl_mcm", "max_logit", "energy", "msp", "entropy", "variance")


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


@pytest.fixture(scope="module")
def other():
    return load_backbone("tiny-resnet", device="cpu")


@pytest.fixture(scope="module")
def known(tiny):
    chance = torch.Generator().manual_seed(0)
    return Features(
        torch.randn(240, tiny.embed_dim, generator=chance),
        np.arange(240) % 3,
        [str(i) for i in range(240)],
        "pets",
        "train",
        tiny.fingerprint,
        torch.randn(240, 4, tiny.embed_dim, generator=chance),
        class_names=NAMES,
    )


def rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def of_prompts(tiny, known):
    from oodnb.methods.coop import prompt_detectors

    context = PromptContext(tiny, NAMES, 4, generator=torch.Generator().manual_seed(1))
    return prompt_detectors(tiny, context, name="coop") + prompt_detectors(tiny, context)


def of_clipn(tiny, known):
    about = (tuple(NAMES), 100.0, tiny.fingerprint, {"epochs": 1, "templates": ["a", "b"]})
    sides = rows(3, tiny.embed_dim), rows(3, tiny.embed_dim, 1)
    return [CLIPNDetector(rule, rule, *sides, *about) for rule in ("ctw", "atd")]


def of_hftt(tiny, known):
    task, outliers = rows(3, tiny.embed_dim), rows(10, tiny.embed_dim, 1)
    told = (tuple(NAMES), tiny.fingerprint, {"seed": 1, "lr": 1e-3})
    return [HFTTDetector("hftt", task, outliers, 0.01, *told, (outliers,), ({"loss": 0.1},))]


def of_toe(tiny, known):
    few = TOESettings(epochs=1, image_batch=64, outlier_batch=16, repeat=True)
    made = fit_toe(known, NAMES, rows(20, tiny.embed_dim, 2), few, cache=False, progress=False)
    return [
        made,
        made.scored("variance"),
        made.scored("mcm", "cosines", classifier=rows(3, tiny.embed_dim)),
        made.scored("mahalanobis", features=known, ridge=1e-3),
    ]


def of_neglabel(tiny, known):
    words = ["sky", "sea", "cup", "oak", "fog"]
    few = NegLabelSettings(keep=4, groups=2)
    return [neglabel(tiny, NAMES, words, few, cache=False, progress=False)]


MAKERS = {
    "zero-shot": lambda tiny, known: zero_shot(tiny, NAMES, SCORES),
    "prompts": of_prompts,
    "clipn": of_clipn,
    "hftt": of_hftt,
    "toe": of_toe,
    "neglabel": of_neglabel,
    "knn": lambda tiny, known: [fit_knn(known, k=3), fit_knn(known, k=3, share=0.5)],
    "mahalanobis": lambda tiny, known: [
        fit_mahalanobis(known, variant, ridge=1e-2) for variant in ("lee", "mcm")
    ],
    "vim": lambda tiny, known: [fit_vim(tiny, NAMES, known)],
    "react": lambda tiny, known: [fit_react(tiny, NAMES, known)],
}


def is_detector(kind):
    parts = (
        {part.name for part in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(kind)
        else set()
    )
    has = lambda name: name in parts or hasattr(kind, name)
    return has("name") and has("needs_local") and callable(getattr(kind, "score", None))


def detectors_in_the_package():
    found = set()
    for module in pkgutil.walk_packages(oodnb.__path__, "oodnb."):
        if module.name == "oodnb.explore" or module.name.startswith("oodnb.shipped"):
            continue
        here = importlib.import_module(module.name)
        found |= {
            value
            for value in vars(here).values()
            if isinstance(value, type)
            and value.__module__ == module.name
            and not value.__name__.startswith("_")
            and not getattr(value, "_is_protocol", False)
            and is_detector(value)
        }
    return found


def test_every_detector_of_the_package_can_be_kept_and_is_tried_here(tiny, known):
    there = detectors_in_the_package()
    assert {TextDetector, KNNDetector, ViMDetector, ReActDetector, NegLabelDetector} <= there
    assert {MahalanobisDetector, TOEDetector} <= there
    assert there == {kind for kind in KINDS.values() if is_detector(kind)}
    tried = {type(d) for make in MAKERS.values() for d in make(tiny, known)}
    assert tried | {Decider} == there


@pytest.mark.parametrize("method", MAKERS)
def test_it_scores_the_same_after_a_file_bit_by_bit(method, tiny, known, tmp_path):
    for detector in MAKERS[method](tiny, known):
        scores = detector.score(known)
        line = threshold_at_tpr(scores, 0.9)
        path = save_detector(detector, tmp_path / "one.safetensors", line=line, licence="MIT")
        again = load_detector(path, tiny)
        assert torch.equal(again.score(known), scores) and again.score(known).dtype == scores.dtype
        assert again.line == line and torch.equal(again.decide(known), line.decide(scores))
        for told in ("name", "needs_local", "settings"):
            assert getattr(again, told) == getattr(detector, told)
        assert list(getattr(again, "class_names", ())) == list(getattr(detector, "class_names", ()))
        if hasattr(detector, "predict"):
            assert torch.equal(again.predict(known), detector.predict(known))
        about = describe_detector(path)
        assert about["backbone"] == {
            "name": "tiny-vit",
            "pretrained": "seed0",
            "fingerprint": tiny.fingerprint,
        }
        assert (about["licence"], about["name"]) == ("MIT", detector.name)


@pytest.mark.parametrize("method", MAKERS)
def test_another_backbone_is_refused_in_words(method, tiny, other, known, tmp_path):
    path = save_detector(MAKERS[method](tiny, known)[0], tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="was fitted with tiny-vit seed0 .* mean nothing"):
        load_detector(path, other)


def test_the_same_detector_gives_the_same_bytes(tiny, known, tmp_path):
    for name in ("a", "b"):
        save_detector(fit_vim(tiny, NAMES, known), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_lines_alone(tmp_path):
    for line in (threshold_at_tpr(torch.arange(99.0)), threshold_from_texts([1.0, 2.0], [0.0])):
        assert load_detector(save_detector(line, tmp_path / "line")) == line


def test_what_the_methods_write_is_read_by_all(tiny, known, tmp_path):
    [hftt], toe = of_hftt(tiny, known), of_toe(tiny, known)[0]
    save_hftt(tmp_path / "hftt.safetensors", hftt)
    save_toe(tmp_path / "toe.safetensors", toe)
    for name, detector, load in (("hftt", hftt, load_hftt), ("toe", toe, load_toe)):
        for again in (
            load_detector(tmp_path / f"{name}.safetensors"),
            load(tmp_path / f"{name}.safetensors"),
        ):
            assert torch.equal(again.score(known), detector.score(known))
    with pytest.raises(ValueError, match="'HFTTDetector', which this oodnb"):
        load_toe(tmp_path / "hftt.safetensors")


def test_files_from_before_are_read(tiny, other, known, tmp_path):
    "As save_hftt and save_toe wrote them before there was one form."
    [hftt], toe = of_hftt(tiny, known), of_toe(tiny, known)[3]
    save_file(
        {"task_embeddings": hftt.task_embeddings, "outliers": hftt.outliers},
        tmp_path / "hftt",
        {
            "hftt": json.dumps(
                dict(
                    name="hftt",
                    temperature=0.01,
                    class_names=NAMES,
                    fingerprint=tiny.fingerprint,
                    trained={},
                    history=[],
                )
            )
        },
    )
    head = {
        f"{i}.{k}": p for i, layer in enumerate(toe.head) for k, p in zip(("weight", "bias"), layer)
    }
    about = {
        f.name: getattr(toe, f.name)
        for f in dataclasses.fields(toe)
        if f.name not in ("head", "classifier", "means", "precision")
    }
    save_file(
        {
            k: v.detach().contiguous().clone()
            for k, v in (head | {"means": toe.means, "precision": toe.precision}).items()
        },
        tmp_path / "toe",
        {"toe": json.dumps(about)},
    )
    for name, detector in (("hftt", hftt), ("toe", toe)):
        again = load_detector(tmp_path / name, tiny)
        assert torch.equal(again.score(known), detector.score(known))
        with pytest.raises(ValueError, match="was fitted with the backbone"):
            load_detector(tmp_path / name, other)


# what is no such file, or no longer


@pytest.fixture
def file(tiny, known, tmp_path):
    return save_detector(fit_knn(known, k=3), tmp_path / "knn.safetensors", card="Pets.")


def test_one_changed_bit_is_noticed_wherever_it_is(file):
    whole = file.read_bytes()
    start = int.from_bytes(whole[:8], "little")
    inside_card = whole.index(b"Pets.")
    for place in (inside_card, start + 9, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="has changed since it was written|holds no detector"):
            load_detector(file)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_file_that_was_cut_off(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="holds no detector"):
        load_detector(file)


def changed(file, change):
    "The same file with another header, and the hash that fits it."
    tensors, facts = load_kept(file, "oodnb_detector")
    change(facts)
    save_kept(file, "oodnb_detector", tensors, facts)
    return file


def test_a_newer_format_and_an_unknown_kind(file):
    with pytest.raises(ValueError, match="is of format 99"):
        load_detector(changed(file, lambda facts: facts.update(format=99)))
    changed(file, lambda facts: facts.update(format=1))
    with pytest.raises(ValueError, match="'KNNDetektor', which .* Did you mean 'KNNDetector'"):
        load_detector(changed(file, lambda facts: facts["state"].update(object="KNNDetektor")))


def test_a_file_cannot_name_a_class_of_its_own_choosing(file):
    with pytest.raises(ValueError, match="'os.system', which this oodnb"):
        load_detector(changed(file, lambda facts: facts["state"].update(object="os.system")))


def test_fields_that_are_new_or_missing(file):
    changed(file, lambda facts: facts["state"]["fields"].pop("batch"))
    assert load_detector(file).batch == 1024  # has a default
    changed(file, lambda facts: facts["state"]["fields"].update(metric="cosine"))
    with pytest.raises(ValueError, match="says 'metric' about a KNNDetector"):
        load_detector(file)
    changed(file, lambda facts: [facts["state"]["fields"].pop(k) for k in ("metric", "k")])
    with pytest.raises(ValueError, match="is incomplete: .*'k'"):
        load_detector(file)


def test_a_detector_of_ones_own(tmp_path):
    @dataclasses.dataclass
    class Mine:
        name: str = "mine"
        needs_local = False

        def score(self, features):
            return features.image_features[:, 0]

    with pytest.raises(ValueError, match="read with read_detector, which is told its class"):
        save_detector(Mine(), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_no_pickle(file):
    "Nothing of it is executed when it is read: a header of JSON, tensors, and nothing else."
    start = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + start])
    assert set(header) == {"__metadata__", "it.rows"}
    assert set(header["__metadata__"]) == {"oodnb_detector"}
