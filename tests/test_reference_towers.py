"""Image and text towers against the reference cases, against an independent float64 oracle, and
against what users do."""

import math
import threading
import warnings

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from reference import cases, close
from safetensors.torch import save_file
from torch import nn

from oodnb.backbones import Backbone, list_backbones, load_backbone, tiny_clip
from oodnb.models.checkpoints import infer_config, read_checkpoint
from oodnb.towers import TINY_CONFIGS, tiny_model

CONFIGS = list(TINY_CONFIGS)


@pytest.fixture(scope="module")
def backbones():
    made = {}
    return lambda config, seed=0: made.setdefault(
        (config, seed), tiny_clip(config, seed, device="cpu")
    )


def random_pixels(backbone, n=2, seed=0):
    return torch.randn(n, 3, *backbone.image_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", cases("locoop", "towers_*.npz"))
def test_towers(case, backbones):
    backbone = backbones(str(case["config"]), int(case["weight_seed"]))
    image_features, local_features = backbone.encode_images(
        torch.from_numpy(case["images"]), local=True
    )
    for got, want in (
        (image_features, case["global_features"]),
        (local_features, case["local_features"]),
    ):
        close(got, want, rtol=2e-5, atol=2e-5 * np.abs(want).mean())
    texts = case["texts"].tolist()
    assert np.array_equal(backbone.tokenizer(texts).numpy(), case["tokens"])
    close(backbone.encode_texts(texts), case["text_features"], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("case", cases("locoop", "tokenize_*.npz"))
def test_tokens(case):
    tokenizer, texts = open_clip.SimpleTokenizer(), case["texts"].tolist()
    tokens = tokenizer(texts, context_length=int(case["context_length"])).numpy()
    assert np.array_equal(tokens, case["tokens"])
    assert np.array_equal(tokens.argmax(axis=1), case["eot_index"])
    assert [len(tokenizer.encode(text)) for text in texts] == case["num_name_tokens"].tolist()


def layer_norm(x, state, name):
    x = x - x.mean(-1, keepdim=True)
    return (
        x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mlp(x, state, block):
    x = linear(layer_norm(x, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc")
    return linear(x / (1 + torch.exp(-1.702 * x)), state, f"{block}.mlp.c_proj")


def value(x, state, block):
    w, b = state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"]
    return layer_norm(x, state, f"{block}.ln_1") @ w.T + b


def vit_oracle(state, image):
    """Global and local features of one image by the formulas of the papers, region by region, head
    by head."""
    patch = state["visual.conv1.weight"].shape[-1]
    rows = [
        image[:, y : y + patch, x : x + patch]
        for y in range(0, image.shape[1], patch)
        for x in range(0, image.shape[2], patch)
    ]
    tokens = [state["visual.class_embedding"]] + [
        (state["visual.conv1.weight"] * row).sum((1, 2, 3)) for row in rows
    ]
    x = layer_norm(
        torch.stack(tokens) + state["visual.positional_embedding"], state, "visual.ln_pre"
    )
    depth = (
        max(
            int(key.split(".")[3])
            for key in state
            if key.startswith("visual.transformer.resblocks.")
        )
        + 1
    )
    for i in range(depth):
        block, entering = f"visual.transformer.resblocks.{i}", x
        q, k, v = value(x, state, block).chunk(3, dim=-1)
        mixed = []
        for head in range(x.shape[1] // 64):
            part = slice(64 * head, 64 * head + 64)
            mixed.append((q[:, part] @ k[:, part].T / 8).softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(mixed, -1), state, f"{block}.attn.out_proj")
        x = x + mlp(x, state, block)
    local = entering + linear(
        value(entering, state, block).chunk(3, dim=-1)[2], state, f"{block}.attn.out_proj"
    )
    local = local + mlp(local, state, block)
    project = lambda z: layer_norm(z, state, "visual.ln_post") @ state["visual.proj"]
    return project(x[0]), project(local[1:])


@pytest.mark.parametrize("config", ["vit_a", "vit_b"])
def test_vit_against_float64_oracle(config, backbones):
    backbone = backbones(config, 3)
    pixels = random_pixels(backbone, seed=3)
    state = {key: tensor.double() for key, tensor in backbone.model.state_dict().items()}
    wanted = [
        torch.stack(features)
        for features in zip(*(vit_oracle(state, image.double()) for image in pixels))
    ]
    for got, want in zip(backbone.encode_images(pixels, local=True), wanted):
        close(got, want, rtol=2e-5, atol=2e-5 * want.abs().mean().item())


@pytest.mark.parametrize("config", ["rn_a", "rn_b"])
def test_resnet_local_is_the_pool_without_mixing(config, backbones):
    """With one pixel, no position and the mean equal to it, the attention pool has nothing to mix:
    global equals local."""
    backbone = backbones(config, 3)
    pool, channels = backbone.model.visual.attnpool, TINY_CONFIGS[config][1]["width"] * 32
    feature_map = torch.randn(2, channels, 1, 1, generator=torch.Generator().manual_seed(0))
    saved = pool.positional_embedding.data.clone()
    pool.positional_embedding.data = torch.zeros(2, channels)
    ordinary, local = pool(feature_map), backbone._read(backbone.model.visual, feature_map)[:, 0]
    pool.positional_embedding.data = saved
    close(local, ordinary, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_one_pass_gives_both(config, backbones):
    backbone = backbones(config)
    pixels, runs = random_pixels(backbone, 3), []
    hook = backbone.model.visual.conv1.register_forward_hook(lambda *_: runs.append(1))
    image_features, local_features = backbone.encode_images(pixels, local=True)
    hook.remove()
    assert len(runs) == 1
    assert torch.equal(image_features, backbone.encode_images(pixels))
    assert local_features.shape == (3, math.prod(backbone.grid), backbone.embed_dim)
    assert image_features.dtype == local_features.dtype == torch.float32
    assert not image_features.requires_grad and not local_features.requires_grad
    assert not backbone._tap._forward_pre_hooks


def test_regions_are_row_major(backbones):
    """With positions and mixing taken away, a patch's local feature depends on that patch alone."""
    backbone = tiny_clip("vit_a", 0, device="cpu")
    with torch.no_grad():
        backbone.model.visual.positional_embedding.zero_()
        first = backbone.model.visual.transformer.resblocks[0]
        first.attn.out_proj.weight.zero_()
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 8:16, 24:32] = 1
    _, local = backbone.encode_images(pixels, local=True)
    changed = (local[0] - local[0, 0]).norm(dim=1) > 1e-4
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 3]


def test_replaced_stem():
    """A convolutional stem in place of conv1 is used as it is, as the small CLIP that ships
    needs."""
    model = tiny_model("vit_a", 0)
    model.visual.conv1 = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 64, 4, stride=4)
    )
    backbone = Backbone(
        model, lambda image: image, open_clip.SimpleTokenizer(), "stem", device="cpu"
    )
    image_features, local_features = backbone.encode_images(random_pixels(backbone), local=True)
    assert local_features.shape == (2, 16, 32) and torch.equal(
        image_features, model.encode_image(random_pixels(backbone))
    )


def test_frozen_and_unchanged_by_use(backbones):
    backbone = tiny_clip("rn_a", 0, device="cpu")
    before, pixels = backbone.fingerprint, random_pixels(backbone, 4)
    first = backbone.encode_images(pixels)
    backbone.model.train()
    assert torch.equal(backbone.encode_images(pixels), first)
    assert backbone.fingerprint == before
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_batches_do_not_matter(backbones):
    backbone = backbones("vit_b")
    pixels, texts = (
        random_pixels(backbone, 5),
        [f"a photo of a {name}" for name in ("cat", "dog", "shark", "ice cream", "T-shirt")],
    )
    together = backbone.encode_images(pixels, local=True)
    for whole, parts in zip(
        together, zip(*(backbone.encode_images(part, local=True) for part in pixels.split(2)))
    ):
        close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    close(
        backbone.encode_texts(texts, batch_size=2),
        backbone.encode_texts(texts),
        rtol=1e-5,
        atol=1e-6,
    )


def test_threads_do_not_overhear(backbones):
    backbone = backbones("vit_a")
    inputs = [random_pixels(backbone, 2, seed) for seed in range(4)]
    wanted = [backbone.encode_images(pixels, local=True)[1] for pixels in inputs]
    wrong = []

    def work(pixels, want):
        for _ in range(20):
            if not torch.allclose(backbone.encode_images(pixels, local=True)[1], want, atol=1e-6):
                wrong.append(1)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("config", ["vit_a", "rn_a"])
def test_half_precision(config, precision, backbones):
    exact, half = backbones(config), tiny_clip(config, 0, "cpu", precision)
    pixels = random_pixels(exact, 4)
    for got, want in zip(
        half.encode_images(pixels, local=True), exact.encode_images(pixels, local=True)
    ):
        assert got.dtype == torch.float32
        error = ((got - want).norm() / want.norm()).item()
        assert 1e-6 < error < (2e-2 if precision == "bf16" else 3e-3)
    assert (
        torch.cosine_similarity(half.encode_texts(["a dog"]), exact.encode_texts(["a dog"])).item()
        > 0.999
    )
    assert half.fingerprint == exact.fingerprint


def test_fingerprint_follows_what_counts(backbones):
    base = backbones("vit_a")
    other_activation = tiny_model("vit_a", 0)
    for block in other_activation.visual.transformer.resblocks:
        block.mlp.gelu = nn.GELU()
    other_heads = tiny_model("vit_b", 0)
    other_heads.visual.transformer.resblocks[0].attn.num_heads = 1
    different = [
        base,
        backbones("vit_a", 1),
        Backbone(other_activation, base.preprocess, base.tokenizer, "gelu", device="cpu"),
        Backbone(
            tiny_model("vit_a", 0),
            backbones("rn_a").preprocess,
            base.tokenizer,
            "preprocess",
            device="cpu",
        ),
        backbones("vit_b"),
        Backbone(other_heads, backbones("vit_b").preprocess, base.tokenizer, "heads", device="cpu"),
    ]
    assert len({backbone.fingerprint for backbone in different}) == len(different)
    assert base.fingerprint == load_backbone("tiny-vit", device="cpu").fingerprint


TOWER = dict(image_size=32, patch_size=8, width=64, layers=1, heads=1, mlp_ratio=4.0, output_dim=32)


@pytest.mark.parametrize(
    "tower, message",
    [
        (
            lambda: VisionTransformer(**TOWER, pool_type="avg", final_ln_after_pool=True),
            "VisionTransformer has no local features: it pools its tokens by 'avg'",
        ),
        (
            lambda: VisionTransformer(**TOWER, attentional_pool=True, attn_pooler_heads=1),
            "attentional pooler",
        ),
        (lambda: VisionTransformer(**TOWER, block_type="custom"), "CustomResidualAttentionBlock"),
        (
            lambda: open_clip.timm_model.TimmModel("resnet18", 32, image_size=32),
            r"TimmModel \(ResNet\) has no local features",
        ),
    ],
)
def test_towers_without_local_features(tower, message):
    model = tiny_model("vit_a", 0)
    model.visual = tower()
    backbone = Backbone(
        model, lambda image: image, open_clip.SimpleTokenizer(), "other", device="cpu"
    )
    assert backbone.grid is None
    assert backbone.encode_images(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    with pytest.raises(ValueError, match=message):
        backbone.encode_images(torch.zeros(2, 3, 32, 32), local=True)


def test_class_token_with_late_norm_is_the_same(backbones):
    """`final_ln_after_pool` moves the LayerNorm behind the pooling; for a class token that changes
    nothing."""
    model = tiny_model("vit_a", 0)
    model.visual.final_ln_after_pool = True
    pixels = random_pixels(backbones("vit_a"))
    late = Backbone(
        model, lambda image: image, open_clip.SimpleTokenizer(), "late", device="cpu"
    ).encode_images(pixels, local=True)
    for got, want in zip(late, backbones("vit_a").encode_images(pixels, local=True)):
        close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda b: b.encode_images(torch.zeros(3, 32, 32)),
            r"takes a float tensor \[N, 3, 32, 32\], got torch.float32 of shape \(3, 32, 32\)",
        ),
        (lambda b: b.encode_images(torch.zeros(1, 3, 48, 48)), "got torch.float32 of shape"),
        (lambda b: b.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "torch.uint8"),
        (lambda b: b.encode_images([1, 2]), "got list"),
        (lambda b: b.encode_texts("a dog"), r"write \['a dog'\]"),
        (lambda b: b.encode_texts(["a", 3]), "number 1 is a int"),
        (lambda b: b.encode_texts(["a"], batch_size=0), "at least 1"),
    ],
)
def test_wrong_inputs(call, message, backbones):
    with pytest.raises(ValueError, match=message):
        call(backbones("vit_a"))


def test_empty_inputs(backbones):
    backbone = backbones("vit_a")
    assert backbone.encode_texts([]).shape == (0, 32)
    image_features, local_features = backbone.encode_images(torch.zeros(0, 3, 32, 32), local=True)
    assert image_features.shape == (0, 32) and local_features.shape == (0, 16, 32)


def test_long_texts_are_cut_with_a_warning(backbones):
    backbone = backbones("vit_a")
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 75 tokens"):
        backbone.encode_texts(["a dog", "dog " * 90])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone.encode_texts(["dog " * 75])


@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_give_the_architecture(config):
    embed_dim, vision, text = TINY_CONFIGS[config]
    found = infer_config(tiny_model(config, 0).state_dict())
    assert found["embed_dim"] == embed_dim
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in vision.items()} == found[
        "vision_cfg"
    ]
    assert text.items() <= found["text_cfg"].items()


def scripted(model, path):
    """An archive of OpenAI's kind: TorchScript, half precision, three additional entries."""
    for key, number in dict(
        input_resolution=model.visual.image_size
        if isinstance(model.visual.image_size, int)
        else model.visual.image_size[0],
        context_length=77,
        vocab_size=49408,
    ).items():
        if hasattr(model, key):
            delattr(model, key)
        model.register_buffer(key, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.trace_module(
                model.eval(),
                dict(
                    encode_image=(
                        torch.zeros(1, 3, int(model.input_resolution), int(model.input_resolution)),
                    )
                ),
                check_trace=False,
            ),
            path,
        )


@pytest.mark.parametrize("config", ["vit_b", "rn_b"])
def test_files_of_every_kind_give_the_same_backbone(config, backbones, tmp_path):
    want, state = backbones(config), backbones(config).model.state_dict()
    save_file(state, tmp_path / "a.safetensors", metadata={"activation": "quick_gelu"})
    torch.save(state, tmp_path / "b.pt")
    torch.save(
        {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
        tmp_path / "c.pth",
    )
    scripted(tiny_model(config, 0), tmp_path / "d.pt")
    for name, activation in (
        ("a.safetensors", None),
        ("b.pt", "quick_gelu"),
        ("c.pth", "quick_gelu"),
        ("d.pt", None),
    ):
        got = load_backbone(tmp_path / name, device="cpu", activation=activation)
        assert got.fingerprint == want.fingerprint, name
        assert (got.grid, got.embed_dim, got.name, got.pretrained) == (
            want.grid,
            want.embed_dim,
            name.split(".")[0],
            name,
        )


def test_half_precision_files_are_read_as_float32(tmp_path):
    save_file(
        {
            key: tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in tiny_model("rn_a", 0).state_dict().items()
        },
        tmp_path / "half.safetensors",
    )
    state, activation = read_checkpoint(tmp_path / "half.safetensors")
    assert activation is None and {tensor.dtype for tensor in state.values()} == {
        torch.float32,
        torch.int64,
    }


def test_archives_are_read_without_running_code(tmp_path, monkeypatch):
    scripted(tiny_model("vit_a", 0), tmp_path / "archive.pt")
    monkeypatch.setattr(
        torch.jit, "load", lambda *_, **__: pytest.fail("torch.jit.load was called")
    )
    monkeypatch.setattr("pickle.loads", lambda *_, **__: pytest.fail("pickle was called"))
    assert read_checkpoint(tmp_path / "archive.pt")[1] == "quick_gelu"


@pytest.mark.parametrize(
    "name, pretrained, error, message",
    [
        ("vit-b16", "openai", ValueError, "Did you mean 'ViT-B-16"),
        ("ViT-B-16", None, ValueError, "as 'ViT-B-16-quickgelu': openai"),
        ("ViT-B-16", "openia", ValueError, "Did you mean 'openai'"),
        (
            "ViT-B-16",
            "openai",
            ValueError,
            r"'ViT-B-16' computes GELU, but the weights 'openai' were trained with QuickGELU.*"
            r"Use load_backbone\('ViT-B-16-quickgelu', 'openai'\)",
        ),
        (
            "ViT-B-32-quickgelu",
            "laion2b_s34b_b79k",
            ValueError,
            r"computes QuickGELU, but .* were trained with GELU.*"
            r"load_backbone\('ViT-B-32', 'laion2b_s34b_b79k'\)",
        ),
        ("RN50", "weights.pt", FileNotFoundError, "There is no checkpoint weights.pt"),
        ("weights.safetensors", None, FileNotFoundError, "There is no checkpoint"),
        ("mini", "openai", ValueError, "comes with its own weights"),
        (None, None, ValueError, "give the name of a model"),
    ],
)
def test_what_users_get_wrong(name, pretrained, error, message):
    with pytest.raises(error, match=message):
        load_backbone(name, pretrained, device="cpu")


def test_offline_error_says_what_is_missing_and_where_it_goes(monkeypatch, tmp_path):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path))
    monkeypatch.setattr(
        "open_clip.factory.download_pretrained",
        lambda *_, **__: (_ for _ in ()).throw(OSError("network is unreachable")),
    )
    with pytest.raises(RuntimeError) as caught:
        load_backbone("ViT-B-16-quickgelu", "openai", device="cpu")
    for part in (
        "network is unreachable",
        "open_clip_model.safetensors of https://huggingface.co/timm/vit_base_patch16_clip_224.openai",
        str(tmp_path / "weights" / "ViT-B-16-quickgelu--openai.safetensors"),
        "load_backbone('mini')",
    ):
        assert part in str(caught.value)


def test_activation_of_a_file_is_checked(tmp_path):
    state = tiny_model("vit_a", 0).state_dict()
    save_file(state, tmp_path / "quick.safetensors", metadata={"activation": "quick_gelu"})
    save_file(state, tmp_path / "silent.safetensors")
    with pytest.raises(
        ValueError, match="'ViT-B-16' computes GELU, but the weights .* were trained with QuickGELU"
    ):
        load_backbone("ViT-B-16", tmp_path / "quick.safetensors", device="cpu")
    with pytest.raises(ValueError, match="does not say which activation"):
        load_backbone(tmp_path / "silent.safetensors", device="cpu")
    with pytest.raises(ValueError, match="asked for GELU"):
        load_backbone(tmp_path / "quick.safetensors", device="cpu", activation="gelu")
    gelu, quick = (
        load_backbone(tmp_path / "silent.safetensors", device="cpu", activation=kind)
        for kind in ("gelu", "quick_gelu")
    )
    assert gelu.fingerprint != quick.fingerprint and not torch.equal(
        gelu.encode_texts(["a dog"]), quick.encode_texts(["a dog"])
    )


def test_listed_weights_fit_their_activation():
    listed = list_backbones()
    assert (
        list(listed)[0] == "mini"
        and "openai" in listed["RN50-quickgelu"]
        and "openai" not in listed.get("RN50", ())
    )
    for name, tags in listed.items():
        for tag in tags:
            marked = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
            assert (
                marked == open_clip.get_model_config(name).get("quick_gelu", False)
                or name == "roberta-ViT-B-32"
            ), (name, tag)
