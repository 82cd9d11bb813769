"""Everything that can be wrong with the inputs of HFTT: each ends in an error that names it, or is
handled and counted."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from oodnb.backbones import load_backbone
from oodnb.benchmark import run_benchmark, score_table
from oodnb.datasets import ImageSet, check_dataset, load_dataset
from oodnb.features import Features, extract
from oodnb.losses import textual_detection_loss
from oodnb.methods.hftt import (
    HFTTDetector,
    HFTTSettings,
    fit_hftt,
    task_features,
    train_outliers,
)
from oodnb.metrics import detection_metrics, fpr_at_tpr
from oodnb.results import metrics_table
from oodnb.scores import mcm, task_log_odds
from oodnb.pipeline.phrases import score_texts
from oodnb.pipeline.words import load_words, split_lines
from reference import cases, close

QUIET = dict(cache=False, progress=False)
TWO = HFTTSettings(templates="photo", outliers=2)


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


def rows(count, width=6, seed=0):
    return F.normalize(
        torch.randn(
            count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ),
        dim=1,
    )


def trained(task=3, texts=4, words=20, outliers=2, **options):
    sides = rows(task), rows(texts, seed=1), rows(words, seed=2)
    return train_outliers(
        *sides,
        [torch.randn(outliers, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))],
        lambda epoch: torch.arange(words),
        HFTTSettings(**options),
        progress=False,
    ).outliers[0]


def features_of(tiny, values, name="pictures"):
    count = len(values)
    return Features(
        values, np.full(count, -1), [str(i) for i in range(count)], name, "test", tiny.fingerprint
    )


def pictures(count=6, name="squares", side=32, **more):
    draw = lambda i: Image.fromarray(
        np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )
    return ImageSet(
        name,
        "test",
        [f"{i}.png" for i in range(count)],
        np.full(count, -1),
        [],
        draw,
        f"{name}-{count}",
        **more,
    )


# words


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", b" \t\r\n\r\n", "\ufeff".encode(), "\u2028\x0c\x85".encode()]
)
def test_a_file_without_words(tmp_path, data):
    (tmp_path / "words.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"words\.txt cannot be used: words holds no word"):
        load_words(tmp_path / "words.txt")


@pytest.mark.parametrize(
    "end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
)
def test_every_line_end_counts(tmp_path, end):
    (tmp_path / "words.txt").write_text(
        end.join(["tea", "", " ", "hot dog", "tea ", "{}"]), "utf-8", newline=""
    )
    found = load_words(tmp_path / "words.txt")
    assert found.words == ("tea", "hot dog", "{}")
    assert found.counts == {"lines": 6, "blank": 2, "repeated": 1}
    assert len(load_words(tmp_path / "words.txt", as_published=True)) == 6


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "words.txt").write_bytes(b"tea\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"byte 7 \(line 2\) is no UTF-8.*iconv"):
        load_words(tmp_path / "words.txt")
    with pytest.raises(ValueError, match="no UTF-8"):
        split_lines("tea".encode("utf-16"))


def test_a_word_too_long_for_the_tower_is_cut_and_told(tiny):
    with pytest.warns(UserWarning, match="cut"):
        score_texts(
            tiny,
            fit_hftt(tiny, ["dog"], TWO, words=["tea", "saw"], **QUIET),
            ["very " * 90],
            **QUIET,
        )


def test_features_of_words_that_are_not_finite(tiny):
    class Broken:
        name, precision, fingerprint, embed_dim, logit_scale, device = (
            "broken",
            "fp16",
            "broken-0",
            4,
            100.0,
            "cpu",
        )

        def encode_texts(self, texts, batch_size=64):
            return torch.full((len(texts), 4), float("nan"))

    with pytest.raises(
        RuntimeError,
        match=r"broken gives 1 texts features that are not finite, first 'a photo of a dog'.*fp32",
    ):
        fit_hftt(Broken(), ["dog"], HFTTSettings(templates="photo"), words=["tea"], **QUIET)


# the task


def test_a_class_prompt_that_does_not_fit(tiny):
    with pytest.raises(ValueError, match="does not fit into the text tower"):
        fit_hftt(tiny, ["dog", "a " * 100], HFTTSettings(templates="name"), words=["tea"], **QUIET)


def test_duplicate_class_names_keep_their_columns_and_share_their_texts(tiny):
    with pytest.warns(UserWarning, match="'missile'"):
        embeddings, texts = task_features(tiny, ["missile", "dog", "missile"], "openai7", **QUIET)
    assert len(embeddings) == 3 and len(texts) == 2 * 7
    assert torch.equal(embeddings[0], embeddings[2])


@pytest.mark.parametrize(
    "task, message",
    [
        ([], "empty"),
        ("dog", "single string"),
        (["dog", " "], "blank"),
        (["dog", None], "NoneType"),
        ([3], "int"),
    ],
)
def test_tasks_that_are_none(tiny, task, message):
    with pytest.raises(ValueError, match=message):
        fit_hftt(tiny, task, words=["tea"], **QUIET)


def test_a_template_without_a_place_for_the_phrase():
    with pytest.raises(ValueError, match="has no {}"):
        HFTTSettings(templates=["a photo"])


@pytest.mark.parametrize(
    "task, outliers, words, batch_size",
    [(1, 1, 1, 256), (1, 1, 5, 1), (2, 300, 7, 3), (40, 1, 3, 2)],
)
def test_one_of_everything_and_many_more_vectors_than_classes(task, outliers, words, batch_size):
    found = trained(task, 3, words, outliers, batch_size=batch_size)
    assert found.shape == (outliers, 6) and found.isfinite().all()


def test_phrases_in_detector_out_with_a_single_phrase(tiny):
    one = HFTTSettings(templates="name", outliers=1)
    found = fit_hftt(tiny, ["a red car next to a house"], one, words=["tea"], **QUIET)
    assert found.score(features_of(tiny, torch.eye(3, tiny.embed_dim) + 0.1)).isfinite().all()


# settings


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(outliers=0), "outliers is 0"),
        (dict(outliers=-1), "outliers is -1"),
        (dict(outliers=2.5), "outliers is 2.5"),
        (dict(outliers=[10, 0]), r"outliers is \[10, 0\]"),
        (dict(temperature=0), "temperature is 0"),
        (dict(temperature=-0.01), "temperature is -0.01"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(focal=float("inf")), "focal"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(epochs=0), "epochs is 0"),
        (dict(lr=0), "lr is 0"),
        (dict(lr=float("nan")), "lr is nan"),
        (dict(lr_min=-0.1), "lr_min is -0.1"),
        (dict(momentum=-1), "momentum is -1"),
        (dict(batch_size=1.5), "batch_size is 1.5"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(order_seed=None), "order_seed is None"),
        (dict(deduplicate="no"), "deduplicate is 'no'"),
        (dict(templates="openai81"), "no template 'openai81'"),
        (dict(word_template=["a", "b"]), "has no {}"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        HFTTSettings(**options)


def test_a_negative_gamma_is_the_plain_mean():
    assert torch.equal(trained(focal=-2.0), trained(focal=0.0))


def test_the_temperature_of_another_backbone(tiny):
    with pytest.warns(UserWarning, match=r"temperature is 0\.0174, but .* has learned 0\.01"):
        warm = replace(TWO, temperature=0.0174)
        found = fit_hftt(tiny, ["dog"], warm, words=["tea"], **QUIET)
    assert found.temperature == 0.0174
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_hftt(tiny, ["dog"], TWO, words=["tea"], **QUIET)
    assert found.temperature == found.settings["temperature"] == 1 / tiny.logit_scale


# vectors


@pytest.mark.parametrize("which", ["task_embeddings", "task_texts", "word_features"])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda x: x * float("nan"), "hold NaN or infinite values, the first in row 0"),
        (lambda x: 2 * x, "must have length 1"),
        (lambda x: F.normalize(x[:, :4], dim=1), "width"),
        (lambda x: x[:0], "at least one row"),
    ],
)
def test_rows_that_cannot_be_read(which, spoil, message):
    sides = {
        "task_embeddings": rows(3),
        "task_texts": rows(4, seed=1),
        "word_features": rows(5, seed=2),
    }
    sides[which] = spoil(sides[which])
    with pytest.raises(ValueError, match=message):
        train_outliers(
            **sides,
            initial=[torch.randn(2, 6, dtype=torch.float64)],
            order=lambda epoch: torch.arange(5),
            progress=False,
        )


def test_vectors_of_length_zero_stay_finite():
    sides = rows(3), rows(4, seed=1), rows(5, seed=2)
    start = torch.zeros(2, 6, dtype=torch.float64)
    start[1, 0] = 1
    free = start.clone().requires_grad_()
    loss = textual_detection_loss(sides[1], sides[2], sides[0], free)
    (slope,) = torch.autograd.grad(loss, free)
    assert loss.isfinite() and slope.isfinite().all()


def test_a_text_of_length_zero_is_left_alone():
    texts = torch.cat([rows(2), torch.zeros(1, 6, dtype=torch.float64)])
    assert textual_detection_loss(texts, texts, rows(3), rows(2, seed=4)).isfinite()


def test_image_features_that_are_not_finite_name_their_set(tiny):
    class Broken:
        name, precision, fingerprint, embed_dim, grid, device, preprocess = (
            "broken",
            "fp16",
            "broken-1",
            64,
            None,
            "cpu",
            staticmethod(tiny.preprocess),
        )

        def encode_images(self, pixels, local=False):
            return torch.full((len(pixels), 64), float("nan"))

    with pytest.raises(RuntimeError, match=r"features of 6 pictures are not finite: 0\.png"):
        extract(Broken(), pictures(), cache=False, progress=False)
    detector = fit_hftt(tiny, ["dog"], TWO, words=["tea"], **QUIET)
    spoiled = torch.ones(3, tiny.embed_dim)
    spoiled[1] = float("nan")
    with pytest.raises(
        ValueError,
        match="1 image_features of 'pictures' are zero, NaN or infinite, the first in row 1",
    ):
        detector.score(features_of(tiny, spoiled))


def test_an_error_in_a_score_names_the_detector_and_the_set(tiny):
    class Wrong:
        name, needs_local = "wrong", False

        def score(self, features):
            if features.dataset == "spoiled":
                raise ValueError("no")
            return torch.zeros(len(features))

    with pytest.raises(ValueError, match="no") as caught:
        run_benchmark(tiny, pictures(), [pictures(5, "spoiled", 33)], Wrong(), **QUIET)
    assert "'wrong' scored 5 images of 'spoiled'" in "".join(caught.value.__notes__)


def test_features_of_another_width_or_backbone(tiny):
    detector = fit_hftt(tiny, ["dog"], TWO, words=["tea"], **QUIET)
    with pytest.raises(ValueError, match=f"width {tiny.embed_dim}, but image_features has shape"):
        detector.score(features_of(tiny, torch.ones(2, 5)))
    other = features_of(tiny, torch.ones(2, tiny.embed_dim))
    other.backbone = "another"
    with pytest.raises(ValueError, match="come from another"):
        detector.score(other)


def test_half_precision_is_refused(tiny):
    detector = HFTTDetector("hftt", torch.eye(4), torch.eye(4), 0.01)
    with pytest.raises(ValueError, match="float32 or better"):
        detector.score(features_of(tiny, torch.ones(2, 4).half()))


# metrics


def test_all_scores_tied():
    found = detection_metrics(np.ones(7), np.ones(4))
    assert (
        found["auroc"],
        found["fpr95_id_positive"],
        found["fpr95_ood_positive"],
        found["ties"],
    ) == (0.5, 1.0, 1.0, 11)


@pytest.mark.parametrize("known, ood", [([], [1.0]), ([1.0], [])])
def test_one_class_only_is_refused_with_its_side(known, ood):
    with pytest.raises(ValueError, match="(?i)ood|id"):
        detection_metrics(known, ood)


def test_an_empty_set_is_found_before_anything_is_encoded(tiny):
    with pytest.raises(ValueError, match="'nothing' .*is empty"):
        run_benchmark(
            tiny,
            pictures(),
            [pictures(0, "nothing")],
            HFTTDetector("hftt", torch.eye(64), torch.eye(64), 0.01),
            **QUIET,
        )


def test_one_picture_on_a_side_does_not_crash_the_table():
    found = metrics_table(
        score_table({"hftt": [1.0, 2.0, 3.0]}, {"one": {"hftt": [0.0]}}), n_boot=20
    )
    assert (found["auroc"] == 100).all()


# pictures


def test_a_missing_folder_and_a_flat_named_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_dataset(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match="NINCO is not there(.|\n)*NINCO_OOD_classes"):
        load_dataset("NINCO", root=tmp_path)


def test_nested_folders_other_files_and_odd_pictures(tmp_path, tiny):
    deep = tmp_path / "images" / "a" / "b"
    deep.mkdir(parents=True)
    whole = pictures().read(0)
    for mode, kind in (("L", "png"), ("CMYK", "jpg"), ("P", "gif"), ("RGBA", "png"), ("1", "bmp")):
        whole.convert(mode).save(deep / f"{mode}.{kind}")
    whole.convert("I").convert("I;16").save(deep / "wide.png")
    (deep / "notes.txt").write_text("no picture")
    (deep / "broken.png").write_bytes(b"\x89PNG broken")
    found = load_dataset(tmp_path, classes=False)
    assert len(found) == 7 and found.about["other_files"] == {".txt": 1}
    assert all(
        found.read(i).mode == "RGB" for i, name in enumerate(found.ids) if "broken" not in name
    )
    assert [name for name, _ in check_dataset(tmp_path, progress=False)["unreadable"]] == [
        "images/a/b/broken.png"
    ]
    with pytest.warns(UserWarning):
        assert len(extract(tiny, found, cache=False, progress=False).skipped) == 1


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"holds no pictures, only: 1 x \.txt"):
        load_dataset(tmp_path)


# saturation


@pytest.mark.parametrize("case", cases("hftt", "mcm_score*.npz"))
def test_mcm_ranks_without_saturation_in_log_odds(case):
    labels = np.concatenate(
        [
            np.zeros(len(case["id_image_features_raw"]), int),
            np.ones(len(case["ood_image_features_raw"]), int),
        ]
    )
    images = F.normalize(
        torch.from_numpy(
            np.concatenate([case["id_image_features_raw"], case["ood_image_features_raw"]])
        ).double(),
        dim=1,
    )
    sims, temperature = (
        images @ torch.from_numpy(case["task_embeddings"]).double(),
        float(case["temperature"]),
    )
    close(-mcm(sims, temperature), case["ood_scores"], atol=1e-12)
    exact = mcm(sims, temperature, log_odds=True).round(decimals=8)
    close(-exact, case["log_rest_exact"], atol=1e-5)
    sides = exact[labels == 0], exact[labels == 1]
    found = detection_metrics(*sides)
    pairs = 2 / ((labels == 0).sum() * (labels == 1).sum())
    close(found["auroc"], case["auroc_exact"], atol=pairs)
    close(
        [fpr_at_tpr(*sides, positive="ood", rule="nearest"), found["fpr95_id_positive"]],
        [case["fpr95_ood_positive_exact"], case["fpr95_id_positive_exact"]],
        atol=1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_classes_at_a_sharp_temperature(dtype):
    gap = torch.linspace(0.4, 1.9, 200, dtype=dtype)
    sims = torch.stack([gap / 2, -gap / 2], 1)
    assert mcm(sims, 0.01).unique().numel() == 1
    odds = mcm(sims, 0.01, log_odds=True)
    assert (odds.diff() > 0).all()
    assert torch.allclose(odds, gap / 0.01, rtol=1e-5)
    assert mcm(sims, 1e-30, log_odds=True).isfinite().all()


def test_log_odds_of_hftt_keep_the_order_where_the_probability_is_one():
    task, out = (
        torch.linspace(0.5, 1, 100, dtype=torch.float64)[:, None],
        torch.zeros(100, 1, dtype=torch.float64),
    )
    assert task_log_odds(task, out, 0.01, probability=True).unique().numel() < 5
    assert (task_log_odds(task, out, 0.01).diff() > 0).all()
