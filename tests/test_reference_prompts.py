"""Learned prompts against the reference cases: tokens, embeddings, features and gradients, through
the packed and the plain computation."""

import numpy as np
import pytest
import torch
from reference import cases, close

from oodnb.backbones import tiny_clip
from oodnb.prompts import PromptContext, encode_prompts
from oodnb.scores import normalize


@pytest.fixture(scope="module")
def backbones():
    made = {}
    return lambda config, seed: made.setdefault(
        (config, seed), tiny_clip(config, seed, device="cpu")
    )


def context_of(case, backbone):
    context = PromptContext(
        backbone,
        case["class_names"].tolist(),
        int(case["n_ctx"]),
        str(case.get("ctx_init", "")) or None,
        str(case["class_token_position"]),
        bool(case["class_specific"]),
    )
    assert context.vectors.shape == case["ctx"].shape
    return context


@pytest.mark.parametrize("share", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("case", cases("locoop", "prompt_*.npz"))
@pytest.mark.filterwarnings("ignore:.*occur more than once")
def test_prompts(case, share, backbones):
    context = context_of(case, backbones(str(case["config"]), int(case["weight_seed"])))
    if str(case["ctx_init"]):
        close(context.vectors.detach(), case["ctx"])
    context.vectors.data = torch.from_numpy(case["ctx"])
    for got, want in (
        (context.tokens, case["tokens"]),
        (context.name_lengths, case["name_lens"]),
        (context.eot_index, case["eot_index"]),
    ):
        assert np.array_equal(got.numpy(), want)
    close(
        context.embeddings().sum(2).detach(), case["prompt_embedding_rowsum"], rtol=1e-5, atol=1e-5
    )
    features = encode_prompts(context, share)
    close(features.detach(), case["text_features"], rtol=2e-5, atol=1e-5)
    (features * torch.from_numpy(case["upstream"])).sum().backward()
    close(
        context.vectors.grad,
        case["grad_ctx"],
        rtol=5e-5,
        atol=5e-5 * np.abs(case["grad_ctx"]).mean(),
    )


@pytest.mark.parametrize("case", cases("locoop", "end_to_end_*.npz"))
def test_logits_of_images(case, backbones):
    backbone = backbones(str(case["config"]), int(case["weight_seed"]))
    context = context_of(case, backbone)
    text = normalize(encode_prompts(context, vectors=torch.from_numpy(case["ctx"])).detach())
    for features, want in zip(
        backbone.encode_images(torch.from_numpy(case["images"]), local=True),
        (case["logits_global"], case["logits_local"]),
    ):
        close(backbone.logit_scale * normalize(features) @ text.T, want, rtol=2e-5, atol=2e-4)
