"""Region maps against the authors' painter, and the geometry against brute force on random
pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from scipy.special import softmax

from oodnb.views.region_figures import overlay
from oodnb.locoop.regions import (
    RegionMap,
    foreground_share,
    region_scores,
    regions_from_logits,
    seen_box,
)
from reference import cases


@pytest.mark.parametrize("case", cases("locoop", "vis_mask_*.npz"))
def test_regions_of_the_published_implementation(case):
    grid, pixels = int(case["grid"]), int(case["region_size"])
    regions = regions_from_logits(case["logits_local"], case["label"], case["top_k"], grid)
    np.testing.assert_array_equal(regions.ood.ravel(), ~case["label_in_topk"])
    if "image_out" not in case:
        return
    y, x, c = np.ogrid[:224, :224, :3]
    picture = ((y + 2 * x + 50 * c) % 256).astype(np.uint8)
    painted, last = np.asarray(overlay(Image.fromarray(picture), regions)), 224 - pixels
    np.testing.assert_array_equal(painted[:, :last], case["image_out"][:, :last])
    covered = np.repeat(~regions.ood[:, -1], pixels)
    assert (painted[covered, last:] == 200).all() and (
        painted[~covered, last:] == picture[~covered, last:]
    ).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12))
def test_rank_is_the_place_in_the_sorted_list(seed, side, classes):
    rng = np.random.default_rng(seed)
    logits, label = rng.normal(size=(side * side, classes)), int(rng.integers(classes))
    order = np.argsort(-softmax(logits, axis=1), axis=1)
    place = 1 + np.argmax(order == label, axis=1)
    regions = regions_from_logits(logits, label, classes, side)
    np.testing.assert_array_equal(regions.rank.ravel(), place)
    for k in range(classes + 1):
        assert regions.at(k).ood.sum() == (place > k).sum()


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (97, 41), (640, 481)])
def test_box_is_what_the_preprocessing_shows(mode, size):
    "Ramps of brightness tell where each pixel of the model's picture came from."
    chain = image_transform_v2(
        PreprocessCfg(size=64, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode), is_train=False
    )
    across, down = np.meshgrid(*((np.arange(n) + 0.5) / n * 255 for n in size))
    seen = chain(
        Image.fromarray(np.stack([across, down, 0 * down], -1).round().astype(np.uint8))
    ).numpy()
    left, top, right, bottom = seen_box(chain, size)
    inner = slice(24, 40)
    for values, low, high, length in (
        (seen[0, 32, inner], left, right, size[0]),
        (seen[1, inner, 32], top, bottom, size[1]),
    ):
        expected = low + (np.arange(64)[inner] + 0.5) / 64 * (high - low)
        np.testing.assert_allclose(values * length, expected, atol=0.02 * length)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(4, 40),
    st.integers(4, 40),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_shares_keep_the_area(seed, height, width, rows, columns):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.4
    left, top = rng.uniform(-3, 1, 2)
    box = (left, top, width + rng.uniform(-1, 3), height + rng.uniform(-1, 3))
    regions = RegionMap(rng.integers(1, 8, (rows, columns)), 0, 3, 7, box, (width, height))
    share, inside = foreground_share(mask, regions)
    down, across = (
        np.clip(np.minimum(np.arange(n) + 1, high) - np.maximum(np.arange(n), low), 0, 1)
        for n, low, high in ((height, box[1], box[3]), (width, box[0], box[2]))
    )
    cell = (box[2] - box[0]) * (box[3] - box[1]) / rows / columns
    np.testing.assert_allclose((share * inside).sum() * cell, down @ mask @ across, atol=1e-9)
    assert (share >= -1e-12).all() and (share <= 1 + 1e-12).all() and (inside <= 1 + 1e-12).all()


def test_scores_are_the_pixel_counts_when_cells_meet_pixels():
    rng = np.random.default_rng(0)
    maps = [
        RegionMap(rng.integers(1, 11, (4, 6)), 0, 5, 10, size=(24, 16), class_name="cup")
        for _ in range(5)
    ]
    masks = [rng.random((16, 24)) < 0.3 for _ in maps]
    found = region_scores(maps, masks).iloc[0]
    ood = np.stack([np.kron(m.ood, np.ones((4, 4), bool)) for m in maps])
    background = ~np.stack(masks)
    both = (ood & background).sum()
    np.testing.assert_allclose(
        [found["precision"], found["recall"], found["iou"]],
        [
            100 * both / ood.sum(),
            100 * both / background.sum(),
            100 * both / (ood | background).sum(),
        ],
    )
