"""Packing changes nothing but cost: features and gradients equal the plain computation in float64,
whatever the names; and the cost is what the rows say."""

import math
import warnings

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from oodnb.backbones import Backbone, load_backbone, tiny_clip
from oodnb.models.shared_prefix import encode_packed, encode_tokens, pack_tokens, text_tower
from oodnb.prompts import (
    POSITIONS,
    PromptContext,
    clean_names,
    encode_prompts,
    zero_shot_classifier,
)
from oodnb.scores import normalize

NAMES = {
    "usual": ["cat", "great_white_shark", "jack-o'-lantern", "T-shirt", "goldfish"],
    "one class": ["airplane wing"],
    "fills every position": ["cat", "very " * 56 + "long name", "dog"],
    "brackets": ["kite (bird of prey)", "ram (adult male sheep)", "kite"],
    "shorter by the full stop": ["a,..", "cat", "a,.."],
    "twice": ["missile", "dog", "missile", "sunglasses", "sunglasses", "missile"],
    "marks": ["<|endoftext|>", "<|startoftext|> cat", "<end_of_text>", "dog"],
    "other scripts": ["北極熊", "Schäferhund", "кошка", "🐈‍⬛", "naïve café", "x²"],
    "one another's beginning": ["dog", "dog sled", "dog sled race", "dog sled race track"],
    "braces and quotes": ["{}", "'s", '"quoted"', "100%"],
}


@pytest.fixture(scope="module")
def double():
    backbone = tiny_clip("vit_b", 5, device="cpu")
    backbone.model.double()
    return backbone


def made(backbone, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PromptContext(
            backbone, *arguments, **options, generator=torch.Generator().manual_seed(1)
        )


def both(context):
    """(features, gradient) of a random combination of them, packed and plain."""
    for share in (True, False):
        features = encode_prompts(context, share)
        upstream = torch.randn(
            features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(2)
        )
        yield (
            features.detach(),
            torch.autograd.grad((features * upstream).sum(), context.vectors)[0],
        )


def assert_exact(context, tolerance=1e-10):
    for mine, plain in zip(*both(context)):
        assert mine.shape == plain.shape and mine.dtype == plain.dtype == torch.float64
        assert (mine - plain).abs().max() <= tolerance * plain.abs().max()


@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_equals_the_plain_computation(names, length, position, class_specific, double):
    assert_exact(
        made(double, names, length, position=position, class_specific=class_specific).double()
    )


@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("position", POSITIONS)
def test_all_positions_filled(position, class_specific, double):
    context = made(
        double, NAMES["fills every position"], 16, position=position, class_specific=class_specific
    )
    assert context.eot_index.tolist() == [19, 76, 19]
    assert_exact(context.double())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.text(max_size=12), min_size=1, max_size=5),
    st.integers(1, 6),
    st.sampled_from(POSITIONS),
    st.booleans(),
)
def test_any_names(double, names, length, position, class_specific):
    """Random names are refused for a reason that names them, or encoded exactly."""
    try:
        context = made(double, names, length, position=position, class_specific=class_specific)
    except ValueError as error:
        assert "Class name number" in str(error)
    else:
        assert_exact(context.double())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(st.integers(1, 3), max_size=7), min_size=1, max_size=12), st.integers(1, 9)
)
def test_any_rows_on_any_shelf(double, texts, width):
    """Few different tokens: many common beginnings, equal rows and rows that begin other rows; and
    no common token at all."""
    tower, end = text_tower(double.model), 49407
    tokens = torch.zeros(len(texts), 9, dtype=torch.long)
    for row, text in zip(tokens, texts):
        row[: len(text) + 1] = torch.tensor([*text, end])
    packed = pack_tokens(tokens, tower.ends(tokens), width=width)
    assert len(packed.tokens) == len(
        {(*text, end)[:count] for text in texts for count in range(1, len(text) + 2)}
    )
    plain = encode_tokens(double.model, tokens, share=False)
    for other in (packed, pack_tokens(tokens, tower.ends(tokens))):
        assert (encode_packed(tower, other) - plain).abs().max() <= 1e-10 * plain.abs().max()


def test_equal_names_tie_exactly():
    backbone = tiny_clip("vit_b", 0, device="cpu")
    context = made(backbone, NAMES["twice"], 16)
    features = encode_prompts(context).detach()
    assert (
        torch.equal(features[0], features[2])
        and torch.equal(features[0], features[5])
        and torch.equal(features[3], features[4])
    )
    assert len(context.packed.ends) == 3


def test_same_numbers_every_time():
    context = made(tiny_clip("vit_a", 0, device="cpu"), NAMES["usual"], 4)
    runs = [next(both(context)) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


@pytest.mark.parametrize("position", POSITIONS)
def test_rows_that_are_computed(position, double):
    """No layer sees a padded row, and the last MLP sees one row per class."""
    context, rows = made(double, NAMES["fills every position"], 16, position=position), []
    shared = {"end": 17, "middle": 9, "front": 1}[position]
    hooks = [
        block.mlp.c_fc.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        for block in double.model.transformer.resblocks
    ]
    encode_prompts(context)
    for hook in hooks:
        hook.remove()
    assert rows == 2 * [shared + sum(int(end) + 1 - shared for end in context.eot_index)] + [3]


def kept(context, share):
    """Bytes that the graph of one encoding holds, weights not counted."""
    weights = {
        parameter.untyped_storage().data_ptr() for parameter in context.backbone.model.parameters()
    }
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encode_prompts(context, share)
    assert features.requires_grad
    return sum(
        tensor.untyped_storage().nbytes() for where, tensor in held.items() if where not in weights
    )


def test_memory_of_a_step():
    context = made(
        tiny_clip("vit_b", 0, device="cpu"),
        [
            f"{a} {b}"
            for a in ("red", "grey", "old")
            for b in ("cat", "dog", "fox", "great white shark")
        ],
        16,
    )
    row = 9 * 128 * 4
    assert kept(context, True) < 1.3 * 3 * len(context.packed.tokens) * row
    assert kept(context, False) > 15 * kept(context, True)


def clip(text=None, **options):
    vision = dict(image_size=32, patch_size=16, width=64, layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            options.pop("kind", open_clip.CLIP)(
                32, vision, dict(width=64, layers=2, heads=2) | (text or {}), **options
            )
            .eval()
            .requires_grad_(False)
        )


def wrapped(model):
    return Backbone(
        model,
        None,
        open_clip.SimpleTokenizer(context_length=model.context_length),
        "small",
        device="cpu",
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(quick_gelu=True),
        dict(quick_gelu=False),
        dict(text=dict(ls_init_value=0.3)),
        dict(text=dict(context_length=32)),
        dict(text=dict(act_kwargs=dict(approximate="tanh"))),
        dict(text=dict(norm_kwargs=dict(eps=1e-3))),
        dict(text=dict(mlp_ratio=3.0)),
        dict(text=dict(layers=1)),
        dict(text=dict(proj_bias=True)),
        dict(text=dict(proj_type="none")),
        dict(text=dict(pool_type="eos", eos_id=49407)),
        dict(kind=open_clip.CustomTextCLIP),
        dict(kind=open_clip.CustomTextCLIP, text=dict(pool_type="eos", eos_id=49407)),
    ],
    ids=str,
)
def test_every_causal_tower(options):
    backbone = wrapped(clip(**options))
    backbone.model.double()
    assert_exact(made(backbone, NAMES["usual"], 4).double())
    texts = ["a photo of a dog", "dog", "", "a photo of a dog sled"]
    tokens = backbone.tokenizer(texts)
    plain = backbone.model.encode_text(tokens)
    assert (encode_tokens(backbone.model, tokens) - plain).abs().max() < 1e-10 * plain.abs().max()


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(text=dict(no_causal_mask=True)), r"tower of CLIP is not .* see those behind"),
        (
            dict(kind=open_clip.CustomTextCLIP, text=dict(no_causal_mask=True, pool_type="last")),
            r"CustomTextCLIP \(TextTransformer\) .* see those behind",
        ),
        (
            dict(kind=open_clip.CustomTextCLIP, text=dict(embed_cls=True)),
            "class token behind the padding",
        ),
        (dict(text=dict(pool_type="last")), "pooled by 'last'"),
        (dict(text=dict(pool_type="first")), "pooled by 'first'"),
        (dict(text=dict(qk_norm=True)), "CustomResidualAttentionBlock"),
    ],
    ids=str,
)
def test_other_towers_are_named_and_still_read_texts(options, why):
    backbone = wrapped(clip(**options))
    with pytest.raises(ValueError, match=why):
        PromptContext(backbone, ["dog"])
    if options["text"] != dict(embed_cls=True) and "qk_norm" not in options["text"]:
        assert torch.equal(
            backbone.encode_texts(["a dog", "cat"]),
            backbone.model.encode_text(backbone.tokenizer(["a dog", "cat"])),
        )


def test_a_tower_from_elsewhere():
    with pytest.raises(ValueError, match="tower of Linear .* not one of open_clip's own"):
        text_tower(nn.Linear(2, 2))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_towers(precision):
    exact, half = (
        made(load_backbone("tiny-vit", device="cpu", precision=kind), NAMES["usual"], 16)
        for kind in ("fp32", precision)
    )
    assert half.vectors.dtype == torch.float32
    features, gradient = next(both(half))
    assert features.dtype == gradient.dtype == torch.float32
    for mine, want in zip((features, gradient), next(both(exact))):
        assert torch.cosine_similarity(mine.flatten(), want.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("size", [1, 1e-4, 1e-8, 1e-30, 0])
def test_small_gradients_keep_their_digits(size):
    """A factor before float16 towers changes nothing but the size of the gradient; without care it
    underflows."""
    exact, half = (
        made(tiny_clip("vit_b", 0, device="cpu", precision=kind), NAMES["usual"], 16)
        for kind in ("fp32", "fp16")
    )
    gradients = [
        torch.autograd.grad((encode_prompts(context)[:, :7] * size).sum(), context.vectors)[0]
        for context in (exact, half)
    ]
    assert (gradients[1] - gradients[0]).double().norm() <= 0.01 * gradients[0].double().norm()


def test_gradient_of_the_features_is_not_touched():
    context = made(tiny_clip("vit_a", 0, device="cpu"), NAMES["usual"], 4)
    features = encode_prompts(context)
    loss = (features * 3).sum() + (features * 1e-6).sum() + context.vectors.sum()
    of_features, of_vectors = torch.autograd.grad(
        loss, (features, context.vectors), retain_graph=True
    )
    assert torch.equal(of_features, torch.full_like(features, 3 + 1e-6))
    assert torch.equal(torch.autograd.grad(loss, context.vectors)[0], of_vectors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_towers_stored_in_other_types(dtype):
    backbone = tiny_clip("vit_a", 0, device="cpu")
    exact = encode_prompts(made(backbone, NAMES["usual"], 4)).detach()
    backbone.model.to(dtype)
    context = made(backbone, NAMES["usual"], 4)
    features = encode_prompts(context)
    features.sum().backward()
    assert (
        features.dtype == torch.promote_types(dtype, torch.float32)
        and context.vectors.grad.dtype == torch.float32
    )
    assert torch.cosine_similarity(features.detach().float(), exact).min() > 0.999


def test_gradients_only_where_they_are_asked_for():
    context = made(tiny_clip("vit_a", 0, device="cpu"), ["cat", "dog"], 2)
    with torch.no_grad():
        assert not encode_prompts(context).requires_grad
    with torch.inference_mode():
        inside = encode_prompts(context)
    context.for_classes(["fox"])
    features = encode_prompts(context)
    features.sum().backward()
    assert (
        torch.allclose(inside, features.detach(), atol=1e-6)
        and context.vectors.grad.abs().sum() > 0
    )
    assert all(parameter.grad is None for parameter in context.backbone.model.parameters())
    assert torch.is_grad_enabled()


def test_state_is_the_words_alone():
    backbone = tiny_clip("vit_a", 0, device="cpu")
    context = made(backbone, ["cat", "dog"], 3)
    assert list(context.state_dict()) == ["vectors"] and context.state_dict()["vectors"].shape == (
        3,
        64,
    )
    other = PromptContext(backbone, ["fox"], 3)
    other.load_state_dict(context.state_dict())
    assert torch.equal(other.vectors, context.vectors)
    again = made(backbone, ["cat", "dog"], 3)
    assert (
        torch.equal(again.vectors, context.vectors)
        and abs(PromptContext(backbone, ["cat"], 60).vectors.std().item() - 0.02) < 0.002
    )


def test_name_lengths_are_limited_exactly():
    backbone = tiny_clip("vit_a", 0, device="cpu")
    assert PromptContext(backbone, ["dog " * 58], 16).eot_index.tolist() == [76]
    with pytest.raises(
        ValueError,
        match=(
            r"Class name number 1, 'dog dog.* has 59 tokens; beside a context of 16 at most "
            r"58 fit into 77"
        ),
    ):
        PromptContext(backbone, ["cat", "dog " * 59], 16)
    assert PromptContext(backbone, ["dog " * 53 + "(dog dog dog)"], 16).eot_index.tolist() == [75]
    assert PromptContext(backbone, ["dog"], 73).eot_index.tolist() == [76]
    with pytest.raises(ValueError, match="At most 73"):
        PromptContext(backbone, ["dog"], 74)


@pytest.mark.parametrize("length", [0, -1, 2.5, "4", None])
def test_lengths_that_are_none(length):
    with pytest.raises(ValueError, match="length is .*at least one word"):
        PromptContext(tiny_clip("vit_a", 0, device="cpu"), ["cat"], length)


def test_words_of_several_tokens():
    backbone = tiny_clip("vit_a", 0, device="cpu")
    context = PromptContext(
        backbone, ["cat"], words="a hyperspectral photo of", position="middle", class_specific=True
    )
    assert context.length == len(backbone.tokenizer.encode("a hyperspectral photo of")) > 4
    end = PromptContext(backbone, ["cat", "dog"], words="a hyperspectral photo of")
    assert torch.allclose(
        encode_prompts(end).detach(),
        backbone.encode_texts(["a hyperspectral photo of cat.", "a hyperspectral photo of dog."]),
        atol=1e-5,
    )


def test_ensembles_equal_the_plain_computation():
    backbone = tiny_clip("vit_b", 1, device="cpu")
    names, templates = (
        clean_names(NAMES["usual"]),
        ["a photo of a {}.", "{}", "the {} in a {}", "itap of my {}."],
    )
    plain = [
        backbone.model.encode_text(
            backbone.tokenizer([template.replace("{}", name) for name in names])
        )
        for template in templates
    ]
    want = normalize(torch.stack([normalize(features) for features in plain]).mean(0))
    assert torch.allclose(zero_shot_classifier(backbone, names, templates), want, atol=1e-6)


def test_a_long_list_of_texts():
    backbone = tiny_clip("vit_a", 1, device="cpu")
    texts = [
        f"This is a photo of a {'very ' * (i % 7)}{'small ' * (i % 3)}thing {i}." for i in range(60)
    ]
    plain = backbone.model.encode_text(backbone.tokenizer(texts))
    for batch_size in (1, 7, 256):
        assert torch.allclose(backbone.encode_texts(texts, batch_size), plain, atol=1e-5)
    packed = pack_tokens(backbone.tokenizer(texts), backbone.tokenizer(texts).argmax(1))
    holes = len(packed.everywhere.slots) / len(packed.tokens) - 1
    assert packed.prefix == 7 and 0 <= holes < 0.3 and math.isfinite(holes)


@pytest.mark.parametrize("kept", [0, 2**20], ids=["gathered again", "kept"])
def test_gathers_on_the_way_back_give_the_same_bits(monkeypatch, kept):
    "What a query receives is read from one place; a plain gather would add the other zeros."
    from oodnb.models import shared_prefix

    class Plain:
        asked = staticmethod(lambda rows, places, back: nn.functional.embedding(places, rows))
        answered = staticmethod(lambda mixed, back: nn.functional.embedding(back, mixed))

    def gradient():
        context = PromptContext(load_backbone("mini"), NAMES["usual"], generator=torch.Generator())
        torch.manual_seed(0)
        (encode_prompts(context) * torch.randn(5, context.backbone.embed_dim)).sum().backward()
        return context.vectors.grad

    monkeypatch.setattr(shared_prefix, "_SMALL", kept)
    ours = gradient()
    monkeypatch.setattr(shared_prefix._Asked, "apply", Plain.asked)
    monkeypatch.setattr(shared_prefix._Answered, "apply", Plain.answered)
    assert ours.abs().max() > 0 and torch.equal(ours, gradient())
