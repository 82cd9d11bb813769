"""The LoCoOp loss against a slow version that sorts, on inputs that notebooks would not show."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oodnb.losses import locoop_loss, locoop_terms, ood_regions, region_entropy


def slow(logits, labels, top_k):
    """Selected regions by sorting, and their mean entropy, in numpy."""
    selected = np.array(
        [
            [label not in np.argsort(-row, kind="stable")[:top_k] for row in image]
            for image, label in zip(logits, labels)
        ]
    ).reshape(logits.shape[:2])
    rows = logits[selected] - logits[selected].max(-1, keepdims=True, initial=-np.inf)
    p = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    return selected, -(p * np.log(p + 1e-5)).sum() / max(1, len(rows))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_like_the_slow_version(data):
    images, regions, classes = (data.draw(st.integers(1, top)) for top in (4, 6, 9))
    top_k, scale, seed = (
        data.draw(st.integers(0, classes)),
        data.draw(st.sampled_from([0.2, 5.0, 1e4])),
        data.draw(st.integers(0, 99)),
    )
    rng = np.random.default_rng(seed)
    logits, labels = (
        scale * rng.normal(size=(images, regions, classes)),
        rng.integers(0, classes, images),
    )
    selected, entropy = slow(logits, labels, top_k)
    z = torch.from_numpy(logits).requires_grad_()
    got = region_entropy(z, labels, top_k)
    assert np.array_equal(ood_regions(z, labels, top_k).numpy(), selected)
    assert got.dtype == torch.float64 and abs(got.item() - entropy) <= 1e-11 * max(1, abs(entropy))
    (slope,) = torch.autograd.grad(got, z)
    assert slope.isfinite().all() and not slope[torch.from_numpy(~selected)].any()
    whole = torch.from_numpy(rng.normal(size=(images, classes)))
    total = locoop_loss(whole, z, labels, top_k, 0.5)
    assert (
        abs(
            total.item()
            - torch.nn.functional.cross_entropy(whole, torch.from_numpy(labels)).item()
            + 0.5 * entropy
        )
        < 1e-11
    )


def test_other_classes_may_tie_across_the_border():
    z = torch.tensor([[[3.0, 2.0, 2.0, 2.0, 1.0]]])
    assert [ood_regions(z, [4], k).item() for k in range(6)] == [True] * 5 + [False]
    assert [ood_regions(z, [0], k).item() for k in range(6)] == [True] + [False] * 5


def test_nan_is_not_lost():
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    z[1, 2, 0] = float("nan")
    for label in range(4):
        assert region_entropy(z, [0, label], 1).isnan()


def test_weight_zero_is_cross_entropy_with_exactly_no_local_gradient():
    z, local = torch.randn(3, 5, requires_grad=True), torch.randn(3, 2, 5, requires_grad=True)
    terms = locoop_terms(z, local, [0, 1, 2], top_k=1, weight=0)
    (slope,) = torch.autograd.grad(terms["loss"], local)
    assert terms["loss"] == terms["loss_id"] and not slope.any()


@pytest.mark.parametrize("top_k", [-1, 6, 2.0, True])
def test_top_k_that_means_nothing(top_k):
    with pytest.raises(ValueError, match="top_k"):
        ood_regions(torch.randn(1, 2, 5), [0], top_k)
