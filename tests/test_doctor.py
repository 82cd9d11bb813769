"""Planted faults, each diagnosed by its name and nothing else blamed for it."""

import copy
import dataclasses

import numpy as np
import open_clip
import pytest
import torch
from torchvision import transforms as T

from oodnb.backbones import Backbone, load_backbone, tiny_clip
from oodnb.benchmark import run_benchmark, save_scores, score_table
from oodnb.checks.doctor import doctor
from oodnb.checks.pipeline import (
    check_activation,
    check_order,
    check_pipeline,
    check_preprocess,
    check_weights,
    gain,
    look,
)
from oodnb.checks.preprocessing import look_through
from oodnb.reproduce import main
from oodnb.datasets import ImageSet, load_dataset
from oodnb.detectors import zero_shot
from oodnb.features import extract
from oodnb.metrics import fpr_at_tpr
from oodnb.models.mini_clip import ARCHITECTURE, ConvStem
from oodnb.scores import cosine_sims, mcm

PIXELS, MEAN, STD = 96, (0.5,) * 3, (0.25,) * 3


@pytest.fixture(scope="module")
def mini():
    return load_backbone("mini", device="cpu")


@pytest.fixture(scope="module")
def pictures():
    return load_dataset("mini", "val")


@pytest.fixture(scope="module")
def run(mini, pictures):
    return run_benchmark(
        mini,
        pictures,
        [load_dataset("mini-near"), load_dataset("mini-textures")],
        zero_shot(mini, pictures, ("mcm", "max_logit")),
        progress=False,
    )


def faults(findings):
    return [finding.fault for finding in findings if finding.fault]


def with_preprocess(mini, *steps):
    sick = copy.copy(mini)
    sick.preprocess = T.Compose(steps)
    return sick


def crop(size=PIXELS, **how):
    return T.Resize(size, **how), T.CenterCrop(PIXELS)


BICUBIC = dict(interpolation=T.InterpolationMode.BICUBIC)
END = (T.ToTensor(), T.Normalize(MEAN, STD))


def test_nothing_is_found_where_nothing_is_wrong(mini, pictures):
    for images in (pictures, load_dataset("mini")):
        found = doctor(mini, images, ["mini-near"], n_images=400)
        assert {finding.verdict for finding in found} == {"ok"}, faults(found)


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ((*crop(110, **BICUBIC), *END), ["wrong resize"]),
        ((T.Resize((PIXELS, PIXELS), **BICUBIC), *END), ["wrong resize"]),
        ((*crop(interpolation=T.InterpolationMode.NEAREST), *END), ["wrong resize"]),
        ((T.CenterCrop(PIXELS), *END), ["wrong resize"]),
        ((T.RandomResizedCrop(PIXELS), *END), ["wrong resize"]),
        ((T.Resize(40), *crop(**BICUBIC), *END), ["wrong resize"]),
        (
            (
                *crop(**BICUBIC),
                T.ToTensor(),
                T.Normalize(
                    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
                ),
            ),
            ["wrong normalisation"],
        ),
        ((*crop(**BICUBIC), T.ToTensor()), ["wrong normalisation"]),
        ((*crop(**BICUBIC), *END, lambda tensor: tensor.flip(0)), ["wrong normalisation"]),
        (
            (*crop(**BICUBIC), T.PILToTensor(), lambda tensor: tensor.float()),
            ["wrong normalisation"],
        ),
        (
            (*crop(110), T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
            ["wrong resize", "wrong normalisation"],
        ),
        ((T.Resize(PIXELS), *END), ["wrong resize"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_preprocessing(mini, steps, named):
    assert faults(check_preprocess(with_preprocess(mini, *steps), mini.preprocess)) == named


def test_a_tensor_pipeline_that_does_the_same_is_in_order(mini):
    same = with_preprocess(
        mini,
        T.ToTensor(),
        T.Resize(PIXELS, antialias=True, **BICUBIC),
        T.CenterCrop(PIXELS),
        T.Normalize(MEAN, STD),
    )
    assert faults(check_preprocess(same, mini.preprocess)) == []


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14-336", "ViT-SO400M-14-SigLIP-384"])
def test_published_preprocessing_is_seen_as_what_it_says(name):
    tag = open_clip.list_pretrained_tags_by_model(name)[0]
    config = open_clip.get_pretrained_cfg(name, tag)
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    lens = look_through(
        open_clip.image_transform(
            size,
            is_train=False,
            mean=config["mean"],
            std=config["std"],
            interpolation=config.get("interpolation"),
            resize_mode=config.get("resize_mode"),
        ),
        size,
    )
    assert lens.known and lens.resampling == "bicubic"
    assert lens.rule == (
        "squashed to a square"
        if config.get("resize_mode") == "squash"
        else "short side, then the middle"
    )
    np.testing.assert_allclose(lens.mean, config["mean"], atol=1e-4)
    np.testing.assert_allclose(lens.std, config["std"], atol=1e-4)


def test_activation_of_known_weights(mini, pictures):
    model = open_clip.CLIP(
        ARCHITECTURE["embed_dim"],
        ARCHITECTURE["vision_cfg"],
        ARCHITECTURE["text_cfg"],
        quick_gelu=True,
    )
    model.visual.conv1 = ConvStem(ARCHITECTURE["vision_cfg"]["width"])
    model.load_state_dict(mini.model.state_dict(), strict=False)
    sick = Backbone(model, mini.preprocess, mini.tokenizer, "mini", "v2", device="cpu")
    assert faults(check_pipeline(sick, pictures, n=200)) == ["wrong activation (GELU is right)"]


def made_with(backbone, count=120):
    """Pictures of noise, with the class that this backbone gives them as their label."""
    rng, names = np.random.default_rng(0), [f"thing {k}" for k in range(8)]
    from PIL import Image

    noise = [
        Image.fromarray(
            np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        )
        for _ in range(count)
    ]
    images = ImageSet(
        "noise",
        "test",
        [f"{i}" for i in range(count)],
        np.zeros(count, np.int64),
        names,
        lambda i: noise[i],
        "noise",
    )
    return dataclasses.replace(
        images,
        labels=look(backbone, images, names, n=count)
        .sims[np.argsort(np.random.default_rng(0).permutation(count))]
        .argmax(1)
        .numpy(),
    )


def test_activation_of_weights_that_do_not_say_it():
    right = tiny_clip(device="cpu")
    right.model.logit_scale.data.fill_(8.0)
    right.logit_scale = float(right.model.logit_scale.exp())
    images = made_with(right)
    wrong = open_clip.CLIP(
        32,
        *[
            {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2},
            {"width": 64, "layers": 2, "heads": 1},
        ],
        quick_gelu=False,
    )
    wrong.load_state_dict(right.model.state_dict())
    wrong = Backbone(wrong, right.preprocess, right.tokenizer, "unknown", device="cpu")

    def examine(backbone):
        seen = look(backbone, images, images.class_names, n=len(images))
        return check_activation(
            backbone,
            None,
            lambda other: gain(look(other, images, images.class_names, n=len(images)), seen),
        )

    assert examine(wrong).fault == "wrong activation (QuickGELU is right)"
    assert examine(right).fault == ""


def sick_model(mini):
    sick = copy.copy(mini)
    sick.model = copy.deepcopy(mini.model)
    return sick


def test_weights_of_another_image_tower(mini, pictures):
    sick = sick_model(mini)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sick.model.visual.state_dict().items():
        if tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.std())
    assert faults(check_pipeline(sick, pictures, n=300)) == ["mismatched weights"]
    sick.name = "unknown"
    found = check_pipeline(sick, pictures, n=300)
    assert faults(found) == ["mismatched weights"] and "chance" in found[0].said


def test_weights_that_were_loaded_in_part(mini):
    sick = sick_model(mini)
    fresh = open_clip.CLIP(
        ARCHITECTURE["embed_dim"],
        ARCHITECTURE["vision_cfg"] | {"layers": 1},
        ARCHITECTURE["text_cfg"],
    )
    sick.model.transformer.resblocks[1].load_state_dict(fresh.transformer.resblocks[0].state_dict())
    finding = check_weights(sick)
    assert finding.fault == "mismatched weights" and "transformer.resblocks.1.ln_1" in finding.said


@pytest.mark.parametrize("saved_as", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_are_the_same_weights(mini, saved_as):
    stored = sick_model(mini)
    stored.model.to(saved_as).float()
    assert check_weights(stored, mini).verdict == "ok"


def test_class_order(mini, pictures):
    assert faults(check_pipeline(mini, pictures, sorted(pictures.class_names), n=300)) == [
        "class order"
    ]
    swapped = list(pictures.class_names)
    swapped[3], swapped[60] = swapped[60], swapped[3]
    assert "2 of 100" in check_order(pictures, swapped).said


@pytest.mark.parametrize(
    "change",
    [
        lambda labels: (labels + 1) % 100,
        lambda labels: 99 - labels,
        lambda labels: np.random.default_rng(5).permutation(100)[labels],
    ],
)
def test_labels_in_another_order_are_seen_in_the_pictures(mini, pictures, change):
    moved = dataclasses.replace(pictures, labels=change(pictures.labels), name="my pictures")
    assert faults(check_pipeline(mini, moved, n=600)) == ["class order"]


def test_file_lists(mini, pictures):
    assert faults(doctor(mini, pictures.subset(range(0, 1000, 2)), n_images=200)) == [
        "wrong file list"
    ]
    renamed = dataclasses.replace(pictures, split="test")
    assert faults(doctor(mini, renamed, n_images=200)) == ["wrong file list"]
    repainted = dataclasses.replace(pictures, fingerprint="other")
    assert faults(doctor(mini, repainted, n_images=200)) == ["wrong file list"]


def test_scores_of_other_pictures(mini, pictures, run):
    part = run[(run["dataset"] != "mini") | (np.arange(len(run)) % 2 == 0)]
    part.attrs = run.attrs
    assert faults(doctor(mini, pictures, scores=part, n_images=200)) == ["wrong file list"]
    assert faults(doctor(mini, pictures, ["mini-near"], scores=run, n_images=200)) == []


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_scores(mini, pictures, kind):
    features, classifier = (
        extract(mini, pictures, progress=False),
        zero_shot(mini, pictures, ("mcm",))[0].classifier,
    )
    scores = mcm(cosine_sims(features.image_features, classifier)).to(kind).float().numpy()
    found = doctor(
        mini,
        pictures,
        scores=score_table({"mcm": scores}, {"other": {"mcm": scores - np.float32(2**-9)}}),
        n_images=200,
    )
    assert faults(found) == ["half-precision scores"]


def test_turned_scores(mini, pictures, run):
    turned = run.assign(mcm=-run["mcm"])
    assert faults(doctor(mini, pictures, scores=turned, detector="mcm", n_images=200)) == [
        "score direction"
    ]


@pytest.mark.parametrize("dataset", ["mean", "mini-near"])
def test_fpr_convention(mini, pictures, run, dataset):
    known, sets = (
        run[run["role"] == "id"]["mcm"],
        [
            part["mcm"]
            for name, part in run[run["role"] == "ood"].groupby("dataset")
            if dataset in ("mean", name)
        ],
    )
    values = {
        side: 100 * np.mean([fpr_at_tpr(known, part, positive=side) for part in sets])
        for side in ("id", "ood")
    }

    def answer(metric, side):
        return faults(
            doctor(
                mini,
                pictures,
                scores=run,
                detector="mcm",
                dataset=dataset,
                reported={metric: f"{values[side]:.2f}"},
                n_images=100,
            )
        )

    assert answer("fpr95", "id") == [] and answer("fpr95_ood_positive", "ood") == []
    assert answer("fpr95", "ood") == ["FPR convention"] and answer("fpr95_ood_positive", "id") == [
        "FPR convention"
    ]


def test_a_number_without_scores_is_compared_with_a_fresh_run(mini, pictures, run):
    sets = [load_dataset("mini-near"), load_dataset("mini-textures")]
    known, parts = (
        run[run["role"] == "id"]["mcm"],
        [part["mcm"] for _, part in run[run["role"] == "ood"].groupby("dataset")],
    )
    value = 100 * np.mean([fpr_at_tpr(known, part, positive="ood") for part in parts])
    assert faults(
        doctor(mini, pictures, sets, reported={"fpr95": f"{value:.2f}"}, n_images=100)
    ) == ["FPR convention"]


def test_the_command(tmp_path, capsys, run):
    few = ["--images", "150", "--device", "cpu", "--split", "val"]
    assert main(["doctor", *few]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 faults found"
    save_scores(run, tmp_path / "run.parquet")
    assert (
        main(
            ["doctor", *few, "--scores", str(tmp_path / "run.parquet"), "--reported", "auroc=1.23"]
        )
        == 1
    )
    assert "unexplained number" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text(
        "import copy\nfrom torchvision import transforms as T\n"
        "from oodnb.backbones import load_backbone\n"
        "def make():\n"
        "    mine = copy.copy(load_backbone('mini', device='cpu'))\n"
        "    mine.preprocess = T.Compose([T.Resize(96), T.CenterCrop(96), T.ToTensor()])\n"
        "    return mine\n"
    )
    assert main(["doctor", *few, "--pipeline", f"{tmp_path / 'mine.py'}:make"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "2 faults found: wrong normalisation, wrong resize"
    for words, message in (
        (["--pipeline", "x.py:y"], "FILE.py:NAME"),
        (["--reported", "3"], "METRIC=VALUE"),
        (["--scores", "none.csv"], "There is no file"),
        (["--id", "minni"], "Did you mean"),
    ):
        assert main(["doctor", *few, *words]) == 2
        assert message in capsys.readouterr().err
