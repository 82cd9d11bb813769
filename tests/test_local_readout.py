"""Every readout of local features against a forward pass written down step by step in float64, what
knows of a readout and what does not, and what models without one say."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from reference import close

from oodnb.backbones import Backbone, load_backbone, tiny_clip, with_readout
from oodnb.datasets import ImageSet, load_dataset
from oodnb.features import extract
from oodnb.locoop.readout import choose_readout, region_alignment
from oodnb.towers import LOCAL_READOUTS, tiny_model

QUICK = lambda x: x / (1 + torch.exp(-1.702 * x))
GELU = lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def norm(x, state, name):
    x = x - x.mean(-1, keepdim=True)
    scaled = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def regions_by_hand(state, tokens, heads, activation):
    """{readout: local features [R, D]} of one picture's tokens as they enter the first block."""
    x, depth = tokens, 0
    while f"visual.transformer.resblocks.{depth}.ln_1.weight" in state:
        depth += 1
    for i in range(depth):
        block, entering = f"visual.transformer.resblocks.{i}", x
        seen = norm(x, state, f"{block}.ln_1")
        weight = state[f"{block}.attn.in_proj_weight"].T
        q, k, v = (seen @ weight + state[f"{block}.attn.in_proj_bias"]).chunk(3, -1)
        mixed, width = torch.zeros_like(v), v.shape[1] // heads
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            for row in range(len(x)):
                shares = (k[:, own] @ q[row, own] / math.sqrt(width)).softmax(0)
                mixed[row, own] = shares @ v[:, own]
        x = x + linear(mixed, state, f"{block}.attn.out_proj")
        grown = activation(linear(norm(x, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc"))
        x = x + linear(grown, state, f"{block}.mlp.c_proj")
    found = {name: [] for name in LOCAL_READOUTS}
    for token, value in zip(entering[1:], v[1:]):  # no region looks at another
        alone = linear(value, state, f"{block}.attn.out_proj")
        kept = token + alone
        grown = activation(linear(norm(kept, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc"))
        whole = kept + linear(grown, state, f"{block}.mlp.c_proj")
        for name, at in zip(LOCAL_READOUTS, (alone, kept, whole)):
            found[name].append(norm(at, state, "visual.ln_post") @ state["visual.proj"])
    return {name: torch.stack(rows) for name, rows in found.items()}


def first_tokens(model, pixels):
    """What enters the first block, heard on the way."""
    heard = []
    block = model.visual.transformer.resblocks[0]
    hook = block.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    with torch.no_grad():
        model.encode_image(pixels)
    hook.remove()
    return heard[0].double()


def compare(backbone, heads, activation):
    sides = backbone.image_size
    pixels = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(5))
    state = {k: v.double() for k, v in backbone.model.state_dict().items() if v.is_floating_point()}
    tokens = first_tokens(backbone.model, pixels)
    wanted = [regions_by_hand(state, one, heads, activation) for one in tokens]
    different = []
    for local in LOCAL_READOUTS:
        got = with_readout(backbone, local).encode_images(pixels, local=True)[1]
        want = torch.stack([one[local] for one in wanted])
        close(got, want, rtol=2e-5, atol=5e-5 * want.abs().mean().item())
        different.append(want)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        gap = (different[one] - different[other]).abs().mean()
        assert gap > 0.01 * different[one].abs().mean(), "readouts differ"


@pytest.mark.parametrize("config, heads", [("vit_a", 1), ("vit_b", 2)])
def test_open_clips_transformer_by_hand(config, heads):
    compare(tiny_clip(config, 7, device="cpu"), heads, QUICK)


def test_the_small_clip_by_hand():
    compare(load_backbone("mini", device="cpu"), 3, GELU)


def test_unpublished_readouts_change_regions_and_nothing_else(tmp_path):
    plain = load_backbone("mini", device="cpu")
    images = load_dataset("mini", "val").subset(range(6))
    kept = {}
    for local in (None, *LOCAL_READOUTS):
        model = load_backbone("mini", device="cpu", local=local)
        assert model.local == (local or "block")
        kept[local] = extract(model, images, cache=tmp_path, local=True, progress=False)
        assert torch.equal(model.encode_texts(["a dog"]), plain.encode_texts(["a dog"]))
    for features in kept.values():
        assert torch.equal(features.image_features, kept[None].image_features)
    regions = {local: features.local_features for local, features in kept.items()}
    assert torch.equal(regions["block"], regions[None])
    assert kept["block"].about["source"] == "cache", (
        "the published readout asked for by name is the same"
    )
    assert not torch.equal(regions["value"], regions["block"])
    assert not torch.equal(regions["value"], regions["value+residual"])
    prints = {local: load_backbone("mini", device="cpu", local=local).fingerprint for local in kept}
    assert prints[None] == prints["block"] == plain.fingerprint and len(set(prints.values())) == 3


def test_detectors_of_one_readout_refuse_features_of_another():
    from oodnb.detectors import zero_shot

    images = load_dataset("mini", "val").subset(range(4))
    models = [load_backbone("mini", device="cpu", local=local) for local in ("value", "block")]
    (detector,) = zero_shot(models[0], images.class_names, scores=("gl_mcm",))
    features = [extract(m, images, cache=False, local=True, progress=False) for m in models]
    assert len(detector.score(features[0])) == 4
    with pytest.raises(ValueError, match="was built with the backbone"):
        detector.score(features[1])


@pytest.mark.parametrize("name", ["rn_a", "rn_b"])
def test_a_pool_has_one_road(name):
    backbone = tiny_clip(name, 1, device="cpu")
    assert backbone.local == "value" and with_readout(backbone, "value").local == "value"
    assert with_readout(backbone, "value").fingerprint == backbone.fingerprint
    for local in ("value+residual", "block"):
        with pytest.raises(ValueError, match=f"ModifiedResNet has no readout '.*{local[-5:]}'"):
            with_readout(backbone, local)


def test_refusals_come_before_anything_is_loaded(tmp_path):
    for name in ("blip-base", "blip-large"):
        with pytest.raises(ValueError, match="is a BLIP and has no local features"):
            load_backbone(name, device="cpu", local="value")
    for name in ("mini", "ViT-B-16-quickgelu", str(tmp_path / "missing.pt")):
        with pytest.raises(ValueError, match="read as value, value\\+residual, block, or as"):
            load_backbone(name, device="cpu", local="values")


def test_a_tower_without_regions_is_loaded_and_refuses_a_readout():
    model = tiny_model("vit_a", 0)
    model.visual.pool_type = "avg"
    about = lambda image: image, lambda texts: torch.zeros(len(texts), 77, dtype=torch.long), "avg"
    plain = Backbone(model, *about, device="cpu")
    assert plain.local is None and plain.grid is None
    with pytest.raises(ValueError, match="pools its tokens by 'avg'"):
        Backbone(model, *about, device="cpu", local="value")


def test_the_choice_is_made_on_validation_outlines():
    model = load_backbone("mini", device="cpu")
    val = load_dataset("mini", "val").subset(np.arange(0, 1000, 5))
    best, table = choose_readout(model, val, cache=False)
    assert best == "value" and table["pictures"].between(150, 200).all()
    above = table["object above background"]
    assert above["value"] > 94 and above["block"] < 86
    assert table["best on object"]["value"] > table["best on object"]["block"] + 15
    assert table["class in background"]["value"] < table["class in background"]["block"] - 8
    with pytest.raises(ValueError, match="nothing is chosen on test pictures"):
        choose_readout(model, load_dataset("mini"))


def test_alignment_of_a_model_that_sees_the_outline():
    """A picture whose left half is the object, and text vectors that agree with the left regions
    alone: everything is right. With the halves exchanged everything is wrong."""
    backbone = load_backbone("mini", device="cpu")
    half = np.zeros((96, 96), bool)
    half[:, :48] = True
    picture = Image.new("RGB", (96, 96))
    images = lambda mask: ImageSet(
        "half",
        "val",
        ["a"],
        [0],
        ["one", "two"],
        lambda i: picture,
        "fixed",
        masks=lambda i: mask,
    )

    class Halves:
        name, grid, device, precision = "halves", (8, 8), backbone.device, "fp32"
        preprocess, embed_dim, fingerprint = staticmethod(backbone.preprocess), 2, "halves"
        image_size = (96, 96)

        def encode_texts(self, texts, batch_size=256):
            return torch.eye(2)[[int("two" in text) for text in texts]]

        def encode_images(self, pixels, local=False):
            left = torch.arange(64) % 8 < 4
            regions = torch.stack([left.float(), (~left).float()], 1)
            return torch.ones(len(pixels), 2), regions.expand(len(pixels), -1, -1)

    right = region_alignment(Halves(), images(half), top_k=1, cache=False)
    wrong = region_alignment(Halves(), images(~half), top_k=1, cache=False)
    names = "object above background", "best on object", "class in background"
    assert [right[k] for k in names] == [100, 100, 0]
    assert [wrong[k] for k in names] == [0, 0, 100]
