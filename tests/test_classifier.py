"""OODClassifier: the conventions of scikit-learn, pictures in every form that Python holds them in,
and words for what is handed in wrongly."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch.utils.data import DataLoader, Dataset, IterableDataset

import oodnb
from oodnb.classifier import OODClassifier
from oodnb.datasets import load_dataset
from oodnb.detectors import zero_shot
from oodnb.saved import load_detector, save_detector
from oodnb.scoring.sources import items_of

NAMES = ["red", "green", "blue"]
# a feature of zeros has no direction, and the library refuses it in words
NOT_FOR_US = {"check_estimators_dtypes"}


def checks(kind):
    return list(estimator_checks_generator(OODClassifier(None, kind, keep=0.5, k=1)))


@pytest.mark.parametrize("kind", ["knn", "mahalanobis", "max_logit"])
def test_the_conventions_of_scikit_learn(kind):
    passed, failed = 0, {}
    for estimator, check in checks(kind):
        name = getattr(check, "func", check).__name__
        try:
            check(estimator)
            passed += 1
        except Exception as error:
            if "Skip" not in type(error).__name__:
                failed[name] = str(error)
    assert set(failed) == NOT_FOR_US, failed
    assert "zero, NaN or infinite" in failed["check_estimators_dtypes"]
    assert passed >= 35


def test_it_stands_in_a_pipeline_and_is_cloned():
    chance = np.random.default_rng(0)
    rows = np.repeat(np.eye(2, 6), 100, 0) + chance.normal(0, 0.1, (200, 6))
    labels = np.repeat(["a", "b"], 100)
    one = OODClassifier(None, "mahalanobis", keep=0.9)
    again = clone(one)
    assert again is not one and again.get_params() == one.get_params()
    piped = make_pipeline(StandardScaler(), one).fit(rows, labels)
    assert (piped.predict(rows) == labels).mean() > 0.8
    found = cross_val_predict(again, rows, labels)
    assert (found == labels).mean() > 0.75 and set(found) <= {"a", "b", "unknown"}


def test_the_line_keeps_what_it_promises():
    "Over many draws a further known row is accepted at the asked rate, whatever learned from rows."
    chance, kept = np.random.default_rng(1), []
    for _ in range(150):
        rows = chance.normal(size=(81, 4)) + 3
        one = OODClassifier(None, "knn", keep=0.8, k=3, random_state=int(chance.integers(1e6)))
        kept.append(one.fit(rows[:-1]).predict(rows[-1:])[0] == "known")
    assert 0.74 < np.mean(kept) < 0.9


# pictures in every form


@pytest.fixture(scope="module")
def squares():
    chance = np.random.default_rng(0)
    arrays = chance.integers(0, 80, (60, 32, 32, 3), dtype=np.uint8)
    for i in range(60):
        arrays[i, :, :, i % 3] += 150
    return arrays


@pytest.fixture(scope="module")
def fitted(squares):
    labels = [NAMES[i % 3] for i in range(60)]
    return OODClassifier("tiny-vit", classes=NAMES, keep=0.9, device="cpu").fit(squares, labels)


class Rows(Dataset):
    def __init__(self, arrays, form):
        self.arrays, self.form = arrays, form

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError(i)
        return self.form(self.arrays[i], i)


class Flow(IterableDataset):
    def __init__(self, arrays):
        self.arrays = arrays

    def __iter__(self):
        return (Image.fromarray(a) for a in self.arrays)


def tensor_of(array, i):
    return torch.from_numpy(array).permute(2, 0, 1) / 255, i % 3


FORMS = {
    "array": lambda a, p: a,
    "channels first": lambda a, p: a.transpose(0, 3, 1, 2),
    "fractions": lambda a, p: a / 255,
    "tensor": lambda a, p: torch.from_numpy(a).permute(0, 3, 1, 2),
    "float tensor": lambda a, p: torch.from_numpy(a).permute(0, 3, 1, 2) / 255,
    "list of PIL": lambda a, p: [Image.fromarray(x) for x in a],
    "generator": lambda a, p: (Image.fromarray(x) for x in a),
    "paths": lambda a, p: [str(x) for x in p],
    "Path objects": lambda a, p: p,
    "Dataset": lambda a, p: Rows(a, lambda x, i: (Image.fromarray(x), i % 3)),
    "IterableDataset": lambda a, p: Flow(a),
    "Hugging Face rows": lambda a, p: Rows(
        a, lambda x, i: {"image": Image.fromarray(x), "label": i}
    ),
    "undecoded rows": lambda a, p: Rows(
        p, lambda x, i: {"image": {"bytes": x.read_bytes(), "path": None}, "label": i}
    ),
    "DataLoader": lambda a, p: DataLoader(Rows(a, tensor_of), batch_size=7),
    "DataLoader that spawns": lambda a, p: DataLoader(
        Rows(a, tensor_of), batch_size=20, num_workers=1, multiprocessing_context="spawn"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_every_form_score_the_same(form, fitted, squares, tmp_path):
    few, paths = squares[:20], [tmp_path / f"{i:02d}.png" for i in range(20)]
    for path, array in zip(paths, few):
        Image.fromarray(array).save(path)
    given = FORMS[form](few, paths)
    assert np.array_equal(fitted.score_samples(given), fitted.score_samples(few))


def test_readers_can_be_sent_to_another_process(squares, tmp_path):
    Image.fromarray(squares[0]).save(tmp_path / "0.png")
    for given in (tmp_path, squares[:2], [Image.fromarray(squares[0])]):
        for item in items_of(given):
            assert pickle.loads(pickle.dumps(item)).read().tobytes() == item.read().tobytes()


def test_labels_come_with_the_pictures(squares, tmp_path):
    options = dict(backbone="tiny-vit", keep=0.5, device="cpu", detector="knn", k=1)
    rows = Rows(squares, lambda x, i: (Image.fromarray(x), i % 3))
    assert OODClassifier(**options).fit(rows).classes_.tolist() == [0, 1, 2]
    for i, name in enumerate(NAMES * 4):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(squares[i]).save(tmp_path / name / f"{i}.png")
    assert OODClassifier(**options).fit(tmp_path).classes_.tolist() == sorted(NAMES)
    named = load_dataset("mini").subset(range(0, 200, 10))
    assert "cat" in named.class_names and len(OODClassifier(**options).fit(named).classes_) > 1


def test_decisions_and_scores_agree(fitted, squares):
    answers, distance = fitted.predict(squares), fitted.decision_function(squares)
    assert np.array_equal(answers == "unknown", distance < 0)
    assert set(answers) <= {*NAMES, "unknown"} and (answers != "unknown").mean() >= 0.9
    assert fitted.threshold_.n_id == 60


def test_the_same_detector_by_its_parts(fitted, squares, tmp_path):
    model = fitted.backbone_
    [same] = zero_shot(model, NAMES, "max_logit")
    rows = model.encode_images(
        torch.stack([model.preprocess(Image.fromarray(a)) for a in squares[:5]])
    )
    assert np.allclose(fitted.score_samples(squares[:5]), same.score(rows.numpy()), atol=1e-4)
    kept = load_detector(save_detector(fitted.detector_, tmp_path / "d.safetensors"), model)
    assert OODClassifier(model, kept, keep=0.9).fit(squares).threshold_ == fitted.threshold_


def test_it_is_on_the_front_page():
    assert oodnb.OODClassifier is OODClassifier


# what can be handed in wrongly


@pytest.mark.parametrize(
    "given, said",
    [
        ([], "There is no picture"),
        ([3], "is no picture"),
        (np.full((2, 8, 8, 3), -1.0), "normalised for a model is no picture"),
        (7, "holds no pictures"),
        ("no/such/folder", "There is no"),
        ([{"text": "a", "label": 1}], "the picture is looked for as image"),
    ],
)
def test_what_is_no_picture(fitted, given, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        fitted.score_samples(given)


def test_a_picture_that_cannot_be_read_is_named(fitted, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="torn.png cannot be read.*oodnb score"):
        fitted.predict(tmp_path)


def test_labels_that_do_not_fit(squares):
    one = OODClassifier("tiny-vit", classes=NAMES, keep=0.5, device="cpu")
    with pytest.raises(ValueError, match="60 pictures but 3 labels"):
        one.fit(squares, NAMES)
    with pytest.raises(ValueError, match="Unknown class 'rot'"):
        one.fit(squares, ["rot"] * 60)
    with pytest.raises(ValueError, match="at least 19 are needed"):
        one.set_params(keep=0.95).fit(squares[:10], NAMES * 3 + ["red"])
