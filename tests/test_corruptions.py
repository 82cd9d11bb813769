"""Corruptions against another implementation (data/reference/corruptions/CASES.md), and what a
corrupted image set promises."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from oodnb.data.corruptions import COMMON, CORRUPTIONS, corrupt, corrupt_image
from oodnb.datasets import ImageSet
from reference import ROOT

FORK = np.load(ROOT / "corruptions" / "fork.npz")
NEAR = {"noise": 0.02, "glass_blur": 0.15, "motion_blur": 0.12, "snow": 0.25, "fog": 0.3}


def draw_picture():
    y, x = np.mgrid[:224, :224] / 223.0
    rng = np.random.default_rng(0)
    picture = np.stack([0.2 + 0.6 * x, 0.3 + 0.4 * y, 0.5 + 0.3 * np.sin(6 * x + 4 * y)], -1)
    for _ in range(14):
        cy, cx, r = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.04, 0.16)
        picture[np.hypot(y - cy, x - cx) < r] = rng.uniform(0, 1, 3)
    picture += 0.08 * (np.sin(90 * x) * np.sin(70 * y))[..., None]
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


PICTURE = draw_picture()


def made(kind, severity, draws=1):
    return np.stack(
        [
            np.asarray(corrupt_image(PICTURE, kind, severity, np.random.default_rng(draw)), float)
            for draw in range(draws)
        ]
    )


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if f"{kind}_1_blocks" in FORK])
def test_corruptions_without_chance_are_those_of_the_fork(kind, severity):
    blocks = made(kind, severity)[0].reshape(8, 28, 8, 28, 3).mean((1, 3))
    assert np.abs(blocks - FORK[f"{kind}_{severity}_blocks"]).mean() < 1.5


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in CORRUPTIONS
        if f"{kind}_1_blocks" not in FORK and kind != "elastic_transform"
    ],
)
def test_corruptions_by_chance_are_as_strong_as_those_of_the_fork(kind, severity):
    pictures = made(kind, severity, 6)
    found = [
        np.abs(pictures - np.asarray(PICTURE, float)).mean(),
        pictures.mean(),
        pictures.std(),
        np.abs(np.diff(pictures, axis=2)).mean(),
    ]
    np.testing.assert_allclose(
        found, FORK[f"{kind}_{severity}"], rtol=NEAR.get(kind, NEAR["noise"]), atol=0.6
    )


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(96, 96), (64, 40), (17, 16), (31, 300)])
def test_every_size_works_and_stays(kind, size):
    picture = PICTURE.resize(size)
    for severity in (1, 5):
        spoiled = corrupt_image(picture, kind, severity, np.random.default_rng(0))
        assert spoiled.size == size and spoiled.mode == "RGB"
    assert not np.array_equal(np.asarray(spoiled), np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_are_made_rgb(mode):
    assert corrupt_image(PICTURE.convert(mode), "fog", 2, 0).mode == "RGB"


@pytest.mark.parametrize("flat", [0, 255])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_black_and_white_pictures_are_no_special_case(kind, flat):
    spoiled = np.asarray(corrupt_image(Image.new("RGB", (40, 40), (flat,) * 3), kind, 3, 0), float)
    assert np.isfinite(spoiled).all()


def little_set(count=12):
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for i in range(count)
    ]
    return ImageSet(
        "little",
        "test",
        [f"{i}.png" for i in range(count)],
        np.zeros(count, int),
        ["a"],
        lambda i: pictures[i],
        "little-0",
        masks=lambda i: np.ones((32, 32), bool),
    )


@pytest.mark.parametrize(
    "kind", ["gaussian_noise", "motion_blur", "snow", "elastic_transform", "glass_blur"]
)
def test_threads_and_order_change_nothing(kind):
    images = corrupt(little_set(), kind, 3, seed=4)
    one_by_one = [np.asarray(images.read(i)) for i in range(len(images))]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda i: np.asarray(images.read(i)), reversed(range(len(images))))
        )[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, together))
    assert all(
        np.array_equal(np.asarray(images.subset([i]).read(0)), one_by_one[i]) for i in (0, 7)
    )
    assert len({picture.tobytes() for picture in one_by_one}) == len(images)


def test_fingerprints_never_meet():
    images = little_set()
    sets = [
        images,
        *(
            corrupt(images, kind, severity, seed, crop)
            for kind in COMMON
            for severity in (1, 2)
            for seed in (0, 1)
            for crop in (None, 32, 48)
        ),
    ]
    assert len({s.fingerprint for s in sets}) == len(sets)
    assert corrupt(images, "fog", 2).fingerprint == corrupt(little_set(), "fog", 2).fingerprint


def test_masks_go_where_the_shape_moves():
    assert corrupt(little_set(), "fog").masks is not None
    assert (
        corrupt(little_set(), "elastic_transform").masks is None
        and corrupt(little_set(), "fog", crop=16).masks is None
    )


@pytest.mark.parametrize("severity", [0, 6, 2.5, True, "3", None])
def test_wrong_severities_are_refused_before_anything_is_read(severity):
    with pytest.raises(ValueError, match="severities 1, 2, 3, 4 and 5"):
        corrupt(little_set(), "fog", severity)


def test_unknown_corruptions_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'gaussian_noise'"):
        corrupt(little_set(), "gausian_noise")
