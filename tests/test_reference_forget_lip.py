"""The baseline Lip against numbers of the published implementation (data/reference/forget/CASES.md,
section 10), and where the equations get nasty."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from scipy.ndimage import gaussian_filter

from oodnb.forget.synthetic_pictures import PLAIN, SynthesisSettings, ascent_step, shown
from oodnb.methods.lip import (
    LipSettings,
    frozen_tensors,
    lip_objective,
    lip_recipe,
    lip_loss,
    noisy_copies,
    steepest,
    train_lip,
)
from oodnb.backbones import load_backbone
from oodnb.towers import tiny_model
from reference import cases, close

BOTH = [torch.float64, torch.float32]


def tiny(case):
    kind = str(case.get("kind", "vit"))
    return tiny_model("rn_a" if kind.startswith("r") else "vit_a", int(case["weight_seed"]))


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("case", cases("forget", "lip_loss_*.npz"))
def test_loss_and_gradients(case, dtype):
    model = tiny(case).to(dtype)
    images, noise = (
        torch.from_numpy(case[name]).to(dtype) / 32 for name in ("images_int8", "noise_int8")
    )
    std = float(case["noise_std"])
    close(noisy_copies(images, noise, std)[0, :1], case["clamped_first"], atol=1e-6)
    loss = lip_objective(model, images, torch.from_numpy(case["tokens"]).long(), noise, std)
    close(loss.item(), case["loss"], rtol=1e-5)
    weights = dict(model.named_parameters())
    slopes = dict(
        zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True))
    )
    for i, name in enumerate(case["grad_names"]):
        close(slopes[str(name)], case[f"grad_{i}"], rtol=1e-3, atol=2e-6)
    sizes = {name: slope.abs().mean().item() for name, slope in slopes.items() if slope is not None}
    ranked = case["ranked_names"].tolist()
    close([sizes[name] for name in ranked], case["ranked_mean_abs_grad"], rtol=1e-3, atol=2e-6)
    frozen = set(case["frozen_names"].tolist()) | (sizes.keys() - set(ranked))
    assert set(steepest(sizes, int(case["top_k_visual"]), int(case["top_k_text"]), frozen)) == set(
        case["ranked_names"][case["selected"]].tolist()
    )
    assert steepest(sizes, len(sizes), len(sizes), sizes.keys() - set(ranked)) == ranked


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("case", cases("forget", "lip_image_ascent*.npz"))
def test_image_ascent(case, dtype):
    model, pixels = tiny(case).to(dtype), (case["mean"].tolist(), case["std"].tolist())
    mean, std = (
        torch.tensor(numbers, dtype=dtype)[:, None, None]
        for numbers in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    )
    vector = torch.from_numpy(case["classifier"][:, int(case["target_class"])]).to(dtype)
    logit = lambda x: (
        model.logit_scale.exp() * F.normalize(model.encode_image((x - mean) / std), dim=1) @ vector
    )
    images = torch.from_numpy(case["init_int8"]).to(dtype) / 32
    for step in range(int(case["steps"])):
        images = ascent_step(
            images,
            case["jitters"][step][None],
            logit,
            step,
            SynthesisSettings(
                rate=float(case["learning_rate"]),
                length_weight=float(case["l2_reg"]),
                blur_every=int(case["blur_every"]),
                blur_sigma=float(case["blur_sigma"]),
                pixels=pixels,
            ),
        )
        close(images[0], case["images"][step], atol=1e-3)
    close(shown(images, pixels), case["display_images"], atol=1e-3)


@pytest.mark.parametrize("kind", ["vit_a", "rn_a"])
@pytest.mark.parametrize("std", [1e-3, 1.0, 1e4])
def test_the_loss_is_the_formula_in_both_precisions(kind, std):
    found = []
    for dtype in BOTH:
        model = tiny_model(kind).to(dtype)
        side = model.visual.image_size
        side = side[0] if isinstance(side, tuple) else side
        images, noise = (
            draw(3, 3, side, side, dtype=dtype),
            draw(4, 3, 3, side, side, seed=1, dtype=dtype),
        )
        tokens = torch.tensor([[49406, 320, 1674, 49407] + [0] * 73]).expand(3, -1)
        loss = lip_objective(model, images, tokens, iter(noise), std)
        with torch.no_grad():
            text, clean, total = model.encode_text(tokens), model.encode_image(images), 0.0
            for s in range(4):
                copies = torch.clamp(images + std * noise[s], images.min(), images.max())
                seen = model.encode_image(copies)
                total += sum(
                    ((text[i] - seen[i]).norm() + (clean[i] - seen[i]).norm())
                    / (2 * (images[i] - copies[i]).norm())
                    for i in range(3)
                )
        assert loss.item() == pytest.approx(
            total.item() / 8, rel=1e-10 if dtype == torch.float64 else 1e-3
        )
        found.append(loss.item())
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_no_gradient_goes_through_the_copies_and_none_is_nan_where_features_meet():
    rows = draw(2, 4).requires_grad_()
    images = draw(2, 5)
    loss = lip_loss(rows, rows, rows.detach()[None], images, images[None] + 1)
    (slope,) = torch.autograd.grad(loss, rows)
    assert loss == 0 and (slope == 0).all()
    model = tiny_model("vit_a")
    model.visual.proj.requires_grad_()
    pictures = draw(1, 3, 32, 32, dtype=torch.float32).requires_grad_()
    lip_objective(
        model,
        pictures,
        torch.tensor([[49406, 320, 49407]]),
        [draw(1, 3, 32, 32, seed=1, dtype=torch.float32)],
        0.1,
    ).backward()
    assert model.visual.proj.grad.isfinite().all()


def test_the_sum_is_over_pictures_and_the_mean_over_copies():
    images, copies = draw(3, 7), draw(5, 3, 7, seed=1)
    text, clean, seen = draw(3, 4, seed=2), draw(3, 4, seed=3), draw(5, 3, 4, seed=4)
    whole = lip_loss(text, clean, seen, images, copies)
    single = [
        lip_loss(
            text[i : i + 1],
            clean[i : i + 1],
            seen[:, i : i + 1],
            images[i : i + 1],
            copies[:, i : i + 1],
        )
        for i in range(3)
    ]
    close(whole, sum(single), rtol=1e-12)
    close(
        lip_loss(text, clean, seen.repeat(2, 1, 1), images, copies.repeat(2, 1, 1)),
        whole,
        rtol=1e-12,
    )


def test_ties_are_ranked_in_the_order_of_the_model():
    names = [
        "visual.b",
        "transformer.b",
        "visual.a",
        "transformer.a",
        "visual.c",
        "ln_final.weight",
    ]
    assert steepest(dict.fromkeys(names, 1.0), 2, 1) == ["visual.b", "visual.a", "transformer.b"]
    assert steepest(dict.fromkeys(names, 0.0), 9, 9, {"visual.b"}) == [
        "visual.a",
        "visual.c",
        "transformer.b",
        "transformer.a",
    ]
    assert steepest(dict.fromkeys(names, 1.0), 0, 0) == []
    assert steepest({"text.transformer.a": 1.0, "text.ln_final.weight": 2.0}, 1, 1) == [
        "text.transformer.a"
    ]


@pytest.mark.parametrize("kind", ["vit_a", "rn_a"])
def test_a_step_is_adam_on_the_chosen_tensors(kind):
    model, settings = (
        tiny_model(kind),
        replace(
            lip_recipe(
                load_backbone("tiny-vit" if kind == "vit_a" else "tiny-resnet", device="cpu")
            ),
            epochs=1,
            draws=2,
            lr=1e-3,
            image_tensors=(3,) * 7,
            text_tensors=(2,) * 7,
        ),
    )
    before, side = copy.deepcopy(model.state_dict()), 32 if kind == "vit_a" else 64
    images, noise = (
        draw(2, 3, side, side, dtype=torch.float32),
        draw(2, 2, 3, side, side, seed=1, dtype=torch.float32),
    )
    tokens = torch.tensor([[49406, 320, 1674, 49407]]).expand(2, -1)
    shares = iter((1.0, 0.5))
    (row,) = train_lip(model, images, tokens, lambda: next(shares), lambda epoch: noise, settings)
    other = tiny_model(kind).requires_grad_()
    lip_objective(other, images, tokens, noise, settings.stds[0]).backward()
    weights = dict(other.named_parameters())
    chosen = steepest(
        {name: p.grad.abs().mean().item() for name, p in weights.items() if p.grad is not None},
        3,
        2,
        frozen_tensors(other),
    )
    torch.optim.Adam([weights[name] for name in chosen], 1e-3, (0.9, 0.98), 1e-6, 0.2).step()
    assert row["tensors"] == 5 and {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    } == set(chosen)
    for name in chosen:
        close(model.state_dict()[name], weights[name].detach(), atol=1e-7)


def test_a_step_that_is_taken_back_leaves_no_trace_in_the_next():
    images, tokens = (
        draw(2, 3, 32, 32, dtype=torch.float32),
        torch.tensor([[49406, 320, 49407]]).expand(2, -1),
    )
    noise = draw(1, 2, 3, 32, 32, seed=1, dtype=torch.float32)
    settings = LipSettings(
        stds=(0.5,),
        image_tensors=(4,),
        text_tensors=(4,),
        lr=1e-3,
        epochs=2,
    )
    twice, once = tiny_model("vit_a"), tiny_model("vit_a")
    shares = iter((1.0, 1.0, 0.5))
    rows = train_lip(twice, images, tokens, lambda: next(shares), lambda epoch: noise, settings)
    shares = iter((1.0, 0.0))
    train_lip(once, images, tokens, lambda: next(shares), lambda epoch: noise, settings)
    assert [row["kept"] for row in rows] == [False, True]
    assert all(
        torch.equal(value, once.state_dict()[name]) for name, value in twice.state_dict().items()
    )


@pytest.mark.parametrize("dtype", BOTH)
def test_the_blur_is_scipys_and_comes_last(dtype):
    images = draw(2, 3, 9, 6, dtype=dtype)
    still = lambda x: 0 * x.flatten(1).sum(1)
    plain = SynthesisSettings(length_weight=0.0, pixels=PLAIN)
    got = ascent_step(images, [(0, 0)] * 2, still, 10, plain)
    want = gaussian_filter(
        images.clamp(0, 1).double().numpy(), (0, 0, 0.5, 0.5), mode="reflect", truncate=4
    )
    close(got, want, atol=1e-6)
    assert torch.equal(
        ascent_step(images, [(0, 0)] * 2, still, 11, plain),
        images.clamp(0, 1),
    )
    assert torch.equal(
        ascent_step(images, [(0, 0)] * 2, still, 0, replace(plain, blur_every=0)),
        images.clamp(0, 1),
    )


def test_rolls_larger_than_the_picture_and_a_black_picture():
    images = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    weight = draw(3, 4, 5)
    got = ascent_step(
        images,
        [(13, 9)],
        lambda x: (x * weight).flatten(1).sum(1),
        1,
        SynthesisSettings(rate=1.0, pixels=((0.5,) * 3, (0.1,) * 3)),
    )
    close(
        got, torch.roll(weight / weight.norm(), (-13, -9), (-1, -2))[None].clamp(-5, 5), atol=1e-12
    )
    flat = ascent_step(images, [(0, 0)], lambda x: x.flatten(1).sum(1) * 0, 1)
    assert flat.isfinite().all()
    assert torch.equal(shown(torch.full((1, 3, 2, 2), 0.25), PLAIN), torch.zeros(1, 3, 2, 2))


def test_pictures_climb_by_themselves():
    model, vector = tiny_model("vit_a").double(), draw(32)
    logit = lambda x: F.normalize(model.encode_image(x), dim=1) @ vector
    images, shifts = draw(3, 3, 32, 32), [(1, 2), (0, 0), (16, 3)]
    together = ascent_step(images, shifts, logit, 0)
    for i in range(3):
        close(
            ascent_step(images[i : i + 1], shifts[i : i + 1], logit, 0)[0], together[i], atol=1e-9
        )


def test_published_numbers_of_the_recipe():
    vit, resnet = (
        lip_recipe(load_backbone(name, device="cpu")) for name in ("tiny-vit", "tiny-resnet")
    )
    assert vit.image_tensors == vit.text_tensors == tuple(25 + k for k in (0, 2, 5, 8, 10, 15, 20))
    assert resnet.image_tensors == tuple(
        5 + k for k in (0, 2, 5, 8, 10, 15, 20)
    ) and resnet.text_tensors == tuple(5 + k for k in (0, 2, 7, 13, 20, 25, 30))
    assert (vit.lr, vit.betas, vit.eps, vit.weight_decay, vit.draws, vit.epochs, vit.stds) == (
        5e-5,
        (0.9, 0.98),
        1e-6,
        0.2,
        25,
        30,
        (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0),
    )
    assert np.allclose(vit.stop, 0.1)
