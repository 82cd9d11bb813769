"""Faults that were found by attacking the library, each tested as a kind: what stands around a
call, what was changed behind its back, files and drives of other people."""

import errno
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oodnb.backbones import load_backbone
from oodnb.benchmark import load_scores, run_benchmark, save_scores
from oodnb.captions import load_captions
from oodnb.data.fewshot import few_shot
from oodnb.datasets import load_dataset
from oodnb.detectors import zero_shot
from oodnb.features import extract
from oodnb.ground.files import locked
from oodnb.methods.coop import CoOpSettings, fit_coop
from oodnb.metrics import auroc
from oodnb.results import id_accuracy


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))


@pytest.fixture
def pictures(tmp_path):
    folder, chance = tmp_path / "pictures" / "a", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(6):
        noise = chance.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return load_dataset(folder.parent)


# what stands around a call


@contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "autocast bf16": partial(torch.autocast, "cpu", torch.bfloat16),
    "autocast fp16": partial(torch.autocast, "cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "deterministic": _deterministic,
    "anomaly": partial(torch.autograd.set_detect_anomaly, True),
}


def _made(pictures):
    backbone = load_backbone("tiny-vit")
    seen = extract(backbone, pictures, cache=False, local=True, progress=False)
    detectors = zero_shot(backbone, ["dog", "cat"], scores=("mcm", "energy", "gl_mcm"))
    found = [seen.image_features, seen.local_features, detectors[0].classifier]
    return backbone.fingerprint, [*found, *(d.score(seen) for d in detectors)]


@pytest.mark.parametrize("around", AROUND)
def test_features_and_scores_do_not_depend_on_what_stands_around(around, pictures):
    name, plain = _made(pictures)
    with AROUND[around](), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other, here = _made(pictures)
    assert other == name
    for a, b in zip(here, plain):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert not any(features.is_inference() for features in here[:2])


@pytest.mark.parametrize("around", ["autocast bf16", "deterministic", "inference mode", "no grad"])
def test_a_training_gives_the_same_or_refuses(around):
    few = few_shot(load_dataset("mini", "fewshot"), 1, classes=["dog", "bus", "apple"])
    backbone = load_backbone("tiny-vit")
    settings = CoOpSettings(epochs=2, views=1, length=2)
    trained = partial(fit_coop, backbone, few, settings, cache=False, progress=False)
    plain = trained().vectors.detach()
    refuses = around in ("inference mode", "no grad")
    with AROUND[around]():
        with pytest.raises(RuntimeError, match="inside torch") if refuses else nullcontext():
            assert torch.equal(trained().vectors.detach(), plain)


def test_another_default_type_is_refused(pictures):
    backbone = load_backbone("tiny-vit")
    with _default_dtype(torch.float64), pytest.raises(RuntimeError, match="default type is"):
        extract(backbone, pictures, cache=False, progress=False)


def test_a_model_loaded_in_inference_mode_can_be_trained_with_outside():
    with torch.inference_mode():
        backbone = load_backbone("tiny-vit")
    assert not any(p.is_inference() for p in backbone.model.parameters())


# what was changed behind its back

CHANGES = {
    "sign": lambda model: model.visual.proj.data.mul_(-1),
    "one number": lambda model: model.visual.proj.detach().numpy()[1].__setitem__(2, 0.5),
    "rows": lambda model: model.visual.proj.data.copy_(model.visual.proj.data.flip(0).clone()),
    "a new tensor": lambda model: setattr(model.visual.proj, "data", model.visual.proj.data * 2),
    "a hook": lambda model: model.visual.register_forward_hook(lambda m, args, out: out * 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_never_served_features_of_the_old_one(change, pictures, tmp_path):
    backbone = load_backbone("tiny-vit")
    before = extract(backbone, pictures, cache=tmp_path / "cache", progress=False)
    with torch.no_grad():
        CHANGES[change](backbone.model)
    after = extract(backbone, pictures, cache=tmp_path / "cache", progress=False)
    true = extract(backbone, pictures, cache=False, progress=False)
    assert torch.equal(after.image_features, true.image_features)
    assert not torch.equal(after.image_features, before.image_features)
    again = extract(backbone, pictures, cache=tmp_path / "cache", progress=False)
    assert again.about["source"] == "cache"


# pictures and folders of other people


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (9_000, 7)])
def test_a_strip_takes_no_gigabytes_and_gives_its_middle(size, tmp_path):
    (tmp_path / "thin" / "a").mkdir(parents=True)
    strip = Image.new("RGB", size, "red")
    middle = [n // 2 for n in size]
    strip.paste("blue", (middle[0] - 4, middle[1] - 4, middle[0] + 4, middle[1] + 4))
    strip.save(tmp_path / "thin" / "a" / "x.png")
    backbone = load_backbone("tiny-vit")
    sizes, prepare = [], backbone.preprocess

    def seen(picture):
        sizes.append(picture.size)
        return prepare(picture)

    backbone.preprocess = seen
    found = extract(backbone, load_dataset(tmp_path / "thin"), cache=False, progress=False)
    assert len(found) == 1
    (cut,) = set(sizes)
    assert max(cut) <= 65 * min(cut) and min(cut) == min(size)
    assert (max(size) - max(cut)) % 2 == 0


def test_folder_names_that_are_no_text_can_be_scored_and_kept(tmp_path):
    root = os.fsencode(tmp_path)
    for folder in (b"known/caf\xe9", b"known/pear", b"other/z"):
        os.makedirs(root + b"/" + folder)
        for i in range(3):
            with open(root + b"/" + folder + b"/%d.png" % i, "wb") as file:
                Image.new("RGB", (32, 32), (80, 40 * i, 9 * len(folder))).save(file, "PNG")
    known, backbone = load_dataset(tmp_path / "known"), load_backbone("tiny-vit")
    assert known.class_names == ["caf\\xe9", "pear"]
    detectors, other = zero_shot(backbone, known, scores=("mcm",)), load_dataset(tmp_path / "other")
    scores = run_benchmark(backbone, known, [other], detectors, cache=False, progress=False)
    assert len(load_scores(save_scores(scores, tmp_path / "scores.parquet"))) == len(scores)


@pytest.mark.parametrize("respelled", [str.upper, lambda n: n.replace(" ", "_")])
def test_accuracy_reads_names_that_are_spelled_otherwise(respelled):
    mini, backbone = load_dataset("mini"), load_backbone("mini")
    names = ["hot dog", "fire truck", "dog"]
    chosen = [i for i, k in enumerate(mini.labels) if mini.class_names[k] in names]
    known = mini.subset(chosen[:60])
    other = load_dataset("mini-plants").subset(range(20))

    def accuracy(asked):
        detectors = zero_shot(backbone, asked, scores=("mcm",))
        scores = run_benchmark(backbone, known, [other], detectors, progress=False)
        return id_accuracy(scores)["accuracy"].item()

    all_names = list(mini.class_names)
    turned = [respelled(name) for name in reversed(all_names)]
    assert accuracy(turned) == pytest.approx(accuracy(all_names))
    with pytest.warns(UserWarning, match="none of those that were asked for"):
        accuracy([name for name in all_names if name != "dog"])


@pytest.mark.parametrize("kind", ["folder", "part", "mini", "part of mini"])
def test_a_set_can_go_to_another_process(kind, pictures):
    mini = load_dataset("mini").subset(range(4))
    images = {
        "folder": pictures,
        "part": pictures.subset([1, 0]),
        "mini": load_dataset("mini"),
        "part of mini": mini,
    }[kind]
    sent = pickle.loads(pickle.dumps(images))
    assert np.array_equal(sent.read(1), images.read(1))
    if images.masks is not None:
        assert np.array_equal(sent.masks(0), images.masks(0))


# drives of other people


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])  # ENOSYS: a soft lock
def test_a_drive_without_locks_is_named_with_a_way_out(code, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="has no locks.*OODNB_HOME"):
        with locked(tmp_path / "thing"):
            pass


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_features_survive_a_full_disk(pictures):
    backbone, home = load_backbone("tiny-vit"), Path(os.environ["OODNB_HOME"])
    true = extract(backbone, pictures, cache=False, progress=False)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.warns(UserWarning, match="cannot be kept in"):
            found = extract(backbone, pictures, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert torch.equal(found.image_features, true.image_features)
    assert not list(home.rglob(".tmp*"))


# odd files among notebooks

ODD = {
    "empty": "",
    "no cells": json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}),
    "a list": "[]",
    "half merged": '{"cells": [\n<<<<<<< HEAD\n',
    "a cell that is none": json.dumps({"cells": [3]}),
    "not text": "\x00\x01",
}


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_notebook_does_not_stop_the_list(kind, tmp_path):
    parameters = 'scale: str = "mini"  # scale\nout: str = ""  # where'
    cell = {"cell_type": "code", "id": "a", "source": parameters, "outputs": []}
    cell |= {"metadata": {"tags": ["parameters"]}, "execution_count": None}
    title = {"cell_type": "markdown", "id": "b", "source": "# T\n\n> what it shows", "metadata": {}}
    good = {"cells": [title, cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "good.ipynb").write_text(json.dumps(good))
    (tmp_path / "odd.ipynb").write_text(ODD[kind])
    command = [sys.executable, "-m", "oodnb.reproduce", "list", "--notebooks", tmp_path]
    done = subprocess.run(
        [*command, "--out", tmp_path / "runs"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "what it shows" in done.stdout and "faulty" in done.stdout


# shards of other people


@pytest.mark.parametrize(
    "members",
    [("s0.input.png", "s0.outputs.txt"), ("img0.25.png", "img0.25.txt"), ("a.PNG", "a.txt")],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_members_with_dots_are_pairs_and_a_byte_order_mark_goes(members, mark, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, "PNG")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, data in zip(members, (picture.getvalue(), mark + b"a red square")):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    pairs = load_captions(str(tmp_path / "shard.tar"), cache=False, progress=False)
    assert pairs.captions == ["a red square"]
    assert pairs.read(0).size == (16, 16)


def test_scores_that_are_masked_are_refused():
    masked = np.ma.masked_array([1.0, 2.0, -999.0], [0, 0, 1])
    with pytest.raises(ValueError, match="1 of 3 numbers of id_scores are masked"):
        auroc(masked, [0.5, 2.5])
    assert auroc(masked.compressed(), [0.5, 2.5]) == auroc([1.0, 2.0], [0.5, 2.5])
