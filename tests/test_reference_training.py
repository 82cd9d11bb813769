"""Losses, schedules, few-shot draws and whole trainings against numbers of the published
implementation (data/reference/locoop/CASES.md)."""

from functools import partial

import numpy as np
import pytest
import torch

from oodnb.backbones import tiny_clip
from oodnb.data.fewshot import sample_shots
from oodnb.losses import locoop_terms, ood_regions, region_entropy
from oodnb.methods import coop, locoop
from oodnb.prompts import PromptContext, encode_prompts
from oodnb.pipeline.train import learning_rates
from reference import cases, close


def tolerances(array, value=(2e-5, 1e-6), gradient=(1e-4, 1e-7)):
    """(rtol, atol) of values and of gradients; the float64 cases ask for 1e-11."""
    return ((1e-11, 1e-14),) * 2 if array.dtype == np.float64 else (value, gradient)


@pytest.mark.parametrize("case", cases("locoop", "entropy_*.npz"))
def test_region_entropy(case):
    logits, labels, top_k = (
        torch.from_numpy(case["logits"]).requires_grad_(),
        torch.from_numpy(case["label"]),
        int(case["top_k"]),
    )
    local = logits.unflatten(0, (-1, int(case["num_local"])))
    entropy = region_entropy(local, labels, top_k)
    (rtol, atol), (grad_rtol, grad_atol) = tolerances(case["logits"])
    assert np.array_equal(ood_regions(local, labels, top_k).flatten().numpy(), case["selected"])
    assert entropy.dtype == logits.dtype
    close(entropy.item(), case["mean_entropy"], rtol, atol)
    close(-entropy.item(), case["loss_en"], rtol, atol)
    close(
        torch.autograd.grad(-entropy, logits)[0].numpy(), case["grad_logits"], grad_rtol, grad_atol
    )


@pytest.mark.parametrize("case", cases("locoop", "full_loss_*.npz"))
def test_whole_loss(case):
    logits, local = (
        torch.from_numpy(case[f"logits_{part}"]).requires_grad_() for part in ("global", "local")
    )
    labels = torch.from_numpy(case["label"])
    terms = locoop_terms(logits, local, labels, int(case["top_k"]), float(case["lambda_value"]))
    (rtol, atol), (grad_rtol, grad_atol) = tolerances(case["logits_global"])
    assert np.array_equal(terms["selected"].numpy(), case["selected"])
    for got, want in (
        (terms["loss"], "loss"),
        (terms["loss_id"], "loss_id"),
        (-terms["entropy"], "loss_en"),
    ):
        close(got.item(), case[want], rtol, atol)
    for got, part in zip(torch.autograd.grad(terms["loss"], (logits, local)), ("global", "local")):
        close(got.numpy(), case[f"grad_logits_{part}"], grad_rtol, grad_atol)
    close(
        100 * coop.coop_terms(logits, None, labels)["accuracy"].item(),
        case["acc_percent"],
        1e-6,
        1e-4,
    )


@pytest.mark.parametrize("case", cases("locoop", "vis_mask_*.npz"))
def test_visualised_regions(case):
    regions = ood_regions(case["logits_local"][None], [int(case["label"])], int(case["top_k"]))[0]
    assert np.array_equal(~regions.numpy(), case["label_in_topk"])


@pytest.mark.parametrize("case", cases("locoop", "lr_schedule*.npz"))
def test_learning_rates(case):
    for s in {name.split("_")[0] for name in case}:
        (lr, epochs, warmup_epochs, constant, least), kind = (
            case[f"{s}_params"].tolist(),
            str(case[f"{s}_warmup_type"]),
        )
        rates = learning_rates(
            int(epochs),
            lr,
            int(warmup_epochs),
            constant if kind == "constant" else least,
            kind,
            bool(case[f"{s}_recount"]),
        )
        close(rates, case[f"{s}_lr_per_epoch"], rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("case", cases("locoop", "fewshot_sampling*.npz"))
def test_few_shot_draw(case):
    for seed, want in zip(case["seeds"], case["selected_index"]):
        assert np.array_equal(
            sample_shots(case["labels"], int(case["num_shots"]), seed, bool(case["repeat"])), want
        )


def made(case, vectors):
    backbone = tiny_clip(str(case["config"]), int(case["weight_seed"]), device="cpu")
    context = PromptContext(
        backbone,
        case["class_names"].tolist(),
        length=int(case["n_ctx"]),
        position=str(case["class_token_position"]),
        class_specific=bool(case["class_specific"]),
    )
    context.vectors.data.copy_(torch.from_numpy(vectors))
    return backbone, context


@pytest.mark.parametrize("case", cases("locoop", "end_to_end_*.npz"))
def test_pictures_to_context_gradient(case):
    backbone, context = made(case, case["ctx"])
    features, local_features = backbone.encode_images(torch.from_numpy(case["images"]), local=True)
    texts = encode_prompts(context)
    logits, local = coop.scaled_logits(features, texts), coop.scaled_logits(local_features, texts)
    close(logits.detach().numpy(), case["logits_global"], 2e-5, 2e-4)
    close(local.detach().numpy(), case["logits_local"], 2e-5, 2e-4)
    terms = locoop_terms(
        logits,
        local,
        torch.from_numpy(case["label"]),
        int(case["top_k"]),
        float(case["lambda_value"]),
    )
    assert np.array_equal(terms["selected"].flatten().numpy(), case["selected"].flatten())
    for got, want in (
        (terms["loss"], "loss"),
        (terms["loss_id"], "loss_id"),
        (-terms["entropy"], "loss_en"),
    ):
        close(got.item(), case[want], 5e-5, 2e-5)
    close(
        torch.autograd.grad(terms["loss"], context.vectors)[0].numpy(),
        case["grad_ctx"],
        1e-4,
        1e-4 * np.abs(case["grad_ctx"]).mean(),
    )


@pytest.mark.parametrize("case", cases("locoop", "train_*.npz"))
def test_training_step_by_step(case):
    _, context = made(case, case["ctx_init_value"])
    features, labels = torch.from_numpy(case["features"]), torch.from_numpy(case["labels"])
    batches = [(x[:, 0], x[:, 1:], y) for x, y in zip(features, labels)]
    rates = learning_rates(
        int(case["max_epoch"]),
        float(case["base_lr"]),
        int(case["warmup_epoch"]),
        float(case["warmup_cons_lr"]),
    )
    terms_of, steps = (
        partial(locoop.watched_terms, top_k=int(case["top_k"]), weight=float(case["lambda_value"])),
        [],
    )
    coop.train_context(
        context,
        lambda epoch: batches,
        rates,
        terms_of=terms_of,
        momentum=float(case["momentum"]),
        weight_decay=float(case["weight_decay"]),
        progress=False,
        watch=lambda step: steps.append({**step, "vectors": context.vectors.detach().clone()}),
    )
    close([step["lr"] for step in steps], case["step_lr"], rtol=1e-9)
    for name, sign, want in (
        ("loss", 1, "step_loss"),
        ("loss_id", 1, "step_loss_id"),
        ("entropy", -1, "step_loss_en"),
    ):
        close([sign * step[name] for step in steps], case[want], 1e-4, 1e-4)
    assert np.array_equal([step["selected"] for step in steps], case["step_num_selected"])
    close(
        torch.stack([step["vectors"] for step in steps]).numpy(),
        case["ctx_after_each_step"],
        1e-4,
        2e-6,
    )
    close(context.vectors.detach().numpy(), case["ctx_final_fp64"], 1e-4, 4e-6)
