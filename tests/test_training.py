"""What notebooks test badly: trainings that are killed, that explode, that lose pictures; half
precision; the view bank."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import learner
import numpy as np
import pytest
import torch
from learner import learn, squares

from oodnb.data.fewshot import few_shot
from oodnb.methods.coop import fit_coop, import_context, load_context, save_context
from oodnb.methods.locoop import LoCoOpSettings, fit_locoop
from oodnb.prompts import encode_prompts

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return learn(folder=folder), (folder / "training.safetensors").read_bytes()


def same(a, b):
    return torch.equal(a.vectors, b.vectors) and a.history == b.history


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_killed_training_resumes_and_ends_with_the_same_bits(tmp_path, straight, epoch):
    command = [sys.executable, str(Path(learner.__file__)), str(tmp_path), str(epoch)]
    killed = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert [row["epoch"] for row in learn(folder=tmp_path, stop_after=0).history] == list(
        range(epoch)
    )
    assert same(learn(folder=tmp_path), straight[0])
    assert (tmp_path / "training.safetensors").read_bytes() == straight[1]


@pytest.mark.parametrize("epoch", range(4))
@pytest.mark.parametrize("views", [None, 2])
def test_stopping_after_any_epoch_changes_nothing(tmp_path, straight, epoch, views):
    whole = straight[0] if views is None else learn(views=views)
    assert len(learn(folder=tmp_path, views=views, stop_after=epoch).history) == epoch
    assert same(learn(folder=tmp_path, views=views), whole)


def test_finished_training_is_read_not_repeated(tmp_path, straight):
    (tmp_path / "training.safetensors").write_bytes(straight[1])
    steps = []
    assert same(learn(folder=tmp_path, watch=steps.append), straight[0])
    assert not steps


@pytest.mark.parametrize(
    "change",
    [
        dict(seed=2),
        dict(lr=0.01),
        dict(top_k=2),
        dict(weight=0.5),
        dict(length=4),
        dict(views=2),
        dict(fit=fit_coop),
        dict(pictures=squares(15)),
        dict(precision="bf16"),
    ],
)
def test_folder_of_another_training_is_refused(tmp_path, straight, change):
    (tmp_path / "training.safetensors").write_bytes(straight[1])
    with pytest.raises(ValueError, match="belongs to another training"):
        learn(folder=tmp_path, **change)


def test_damaged_state_is_named(tmp_path, straight):
    (tmp_path / "training.safetensors").write_bytes(straight[1][:-7])
    with pytest.raises(RuntimeError, match="cannot be read"):
        learn(folder=tmp_path)


def test_loss_that_is_no_number_keeps_the_finished_epochs(tmp_path):
    with pytest.raises(
        RuntimeError,
        match="Training failed in epoch 1 .* those after 1 finished epochs; its state is kept",
    ):
        learn(folder=tmp_path, lr=1e38)
    kept = learn(folder=tmp_path, lr=1e38, stop_after=1)
    assert kept.vectors.isfinite().all() and len(kept.history) == 1


def test_as_many_views_as_epochs_are_fresh_crops(tmp_path, straight):
    bank = learn(views=4, cache=tmp_path)
    assert torch.allclose(bank.vectors, straight[0].vectors, atol=1e-6)
    assert len(list(tmp_path.glob("*/local.safetensors"))) == 4
    assert same(learn(views=4, cache=tmp_path), bank)
    assert not torch.allclose(learn(views=1).vectors, bank.vectors, atol=1e-6)


def test_pictures_that_cannot_be_read_are_named_and_left_out():
    with pytest.warns(UserWarning, match="2 of 20 pictures .*07.png"):
        context = learn(pictures=squares(broken=(7, 9)))
    assert (
        context.settings["skipped"] == ["07.png", "09.png"] and context.settings["pictures"] == 18
    )
    with pytest.raises(ValueError, match="No picture is left of 1 classes"):
        learn(pictures=squares(broken=(2, 7, 12, 17)))


def test_nothing_is_encoded_before_bad_arguments_are_found(monkeypatch):
    monkeypatch.setattr("oodnb.methods.coop.feature_batches", None)
    for problem, options in {
        "200, but there are 5 classes": dict(top_k=200),
        "views is 0": dict(views=0),
        "batch_size is 2.5; give a whole number": dict(batch_size=2.5),
        "position is": dict(position="back"),
        "tokens": dict(class_names=["very " * 80 + "long", *learner.NAMES[1:]]),
        "weight is": dict(weight=-1),
    }.items():
        with pytest.raises(ValueError, match=problem):
            learn(**options)
    with pytest.raises(ValueError, match="fewer than 5 pictures"):
        few_shot(squares(), 5)


def test_coop_needs_no_local_features(monkeypatch):
    asked = []
    from oodnb.backbones import Backbone

    encode = Backbone.encode_images
    monkeypatch.setattr(
        Backbone,
        "encode_images",
        lambda self, pixels, local=False: (asked.append(local), encode(self, pixels, local))[1],
    )
    coop = learn(fit_coop)
    assert set(asked) == {False}
    assert torch.allclose(coop.vectors, learn(top_k=5).vectors, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_towers_train_a_full_precision_context(straight, precision):
    half = learn(precision=precision)
    start = learn(stop_after=0).vectors
    assert half.vectors.dtype == torch.float32
    moved, wanted = half.vectors - start, straight[0].vectors - start
    assert torch.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.9


@pytest.mark.parametrize(
    "options",
    [
        dict(config="rn_a"),
        dict(position="middle"),
        dict(position="front", class_specific=True, lr=1e-5),
        dict(words="a photo of a"),
        dict(batch_size=64),
    ],
)
def test_variants_learn(options):
    context = learn(**options, epochs=3)
    assert context.history[-1]["loss"] < context.history[0]["loss"] and all(
        np.isfinite(list(row.values())).all() for row in context.history
    )
    assert not any(
        p.requires_grad or p.grad is not None for p in context.backbone.model.parameters()
    )


@pytest.mark.parametrize("specific", [False, True])
def test_contexts_are_kept_and_imported(tmp_path, specific):
    context = learn(epochs=1, class_specific=specific)
    save_context(tmp_path / "context.safetensors", context)
    again = load_context(tmp_path / "context.safetensors", context.backbone)
    assert (
        torch.equal(encode_prompts(again), encode_prompts(context))
        and again.settings == context.settings
    )
    torch.save(
        {
            "state_dict": {"ctx": context.vectors.detach().half(), "token_prefix": torch.zeros(1)},
            "epoch": 50,
        },
        tmp_path / "model.pth.tar-50",
    )
    old = import_context(tmp_path / "model.pth.tar-50", context.backbone, learner.NAMES)
    assert old.vectors.dtype == torch.float32 and torch.allclose(
        old.vectors, context.vectors, atol=1e-3
    )
    if specific:
        with pytest.raises(ValueError, match="class-specific"):
            load_context(tmp_path / "context.safetensors", context.backbone, ["cat", "dog"])
        with pytest.raises(ValueError, match="class-specific for 5 classes"):
            import_context(tmp_path / "model.pth.tar-50", context.backbone, ["cat", "dog"])
    else:
        assert (
            len(
                encode_prompts(
                    load_context(tmp_path / "context.safetensors", context.backbone, ["cat", "dog"])
                )
            )
            == 2
        )


def spring(path):
    Path(path).touch()


class Trap:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_import_runs_no_code_of_the_file(tmp_path):
    context = learn(epochs=1)
    for name, trap in (
        ("own", Trap(spring, str(tmp_path / "sprung"))),
        ("system", Trap(os.mkdir, str(tmp_path / "sprung"))),
    ):
        torch.save(
            {"state_dict": {"ctx": context.vectors.detach()}, "scheduler": trap}, tmp_path / name
        )
        if name == "own":
            assert torch.equal(
                import_context(tmp_path / name, context.backbone, learner.NAMES).vectors,
                context.vectors,
            )
        else:
            with pytest.raises(ValueError, match="no checkpoint of a prompt learner"):
                import_context(tmp_path / name, context.backbone, learner.NAMES)
    assert not (tmp_path / "sprung").exists()


def test_same_seed_same_context_other_seed_other_context(straight):
    assert same(learn(folder=None), straight[0])
    assert not torch.equal(learn(seed=2).vectors, straight[0].vectors)
    assert not torch.equal(
        fit_locoop(
            straight[0].backbone,
            few_shot(squares(), 2, seed=1),
            LoCoOpSettings(epochs=1, length=3, batch_size=5),
            progress=False,
        ).vectors,
        straight[0].vectors,
    )
