"""A CLIP in the layout of transformers is the same function here: its own forward pass is the
reference, on small random models; what would be left out is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from oodnb.backbones import load_backbone
from oodnb.models.checkpoints import read_checkpoint

transformers = pytest.importorskip("transformers", reason="the extra blip is not installed")

TEXT = dict(vocab_size=49408, hidden_size=64, intermediate_size=256, num_hidden_layers=2)
TEXT |= dict(max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407)
VISION = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=3, patch_size=16)
VISION |= dict(image_size=48)


def clip(act="quick_gelu", heads=(1, 1), seed=0):
    config = transformers.CLIPConfig(
        text_config=TEXT | dict(num_attention_heads=heads[0], hidden_act=act),
        vision_config=VISION | dict(num_attention_heads=heads[1], hidden_act=act),
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.03 * torch.randn_like(p))
    return model


def features(model, pixels, tokens):
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels, attention_mask=None)
        return out.image_embeds, out.text_embeds, model.logit_scale.exp()


def check_same(backbone, model):
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    tokens = backbone.tokenizer(["a dog", "a photo of two red buses", "x"])
    image, text, scale = features(model, pixels, tokens)
    with torch.no_grad():
        own = backbone.model.encode_image(pixels, normalize=True)
        words = backbone.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(own, image, rtol=0, atol=2e-6)
    torch.testing.assert_close(words, text, rtol=0, atol=2e-6)
    torch.testing.assert_close(backbone.model.logit_scale.exp(), scale)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)])
def test_a_folder_is_the_same_function(act, heads, tmp_path):
    model = clip(act, heads)
    model.save_pretrained(tmp_path / "clip")
    check_same(load_backbone(tmp_path / "clip"), model)


@pytest.mark.parametrize("kind", ["bin", "sharded", "file", "trainer"])
def test_other_ways_to_keep_it(kind, tmp_path):
    model, folder = clip(), tmp_path / "clip"
    model.save_pretrained(folder, max_shard_size="3MB" if kind == "sharded" else "9GB")
    asked = {}
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif kind == "sharded":
        assert (folder / "model.safetensors.index.json").is_file()
    elif kind == "file":  # alone: nothing says the activation
        folder = (folder / "model.safetensors").rename(tmp_path / "alone.safetensors")
        with pytest.raises(ValueError, match="does not say which activation"):
            load_backbone(folder)
        asked = {"activation": "quick_gelu"}
    else:
        state = {f"module.{key}": t for key, t in model.state_dict().items()}
        folder = tmp_path / "last.pt"
        torch.save({"state_dict": state, "epoch": 3}, folder)
        asked = {"activation": "quick_gelu"}
    check_same(load_backbone(folder, **asked), model)


def test_under_the_name_of_an_architecture(tmp_path):
    clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit the architecture"):
        load_backbone("ViT-B-32-quickgelu", pretrained=tmp_path)


def test_the_preprocessing_of_the_folder_is_used(tmp_path):
    clip().save_pretrained(tmp_path)
    plain = load_backbone(tmp_path).preprocess
    told = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3, resample=2, do_center_crop=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    own = repr(load_backbone(tmp_path).preprocess)
    assert "0.25" in own and "bilinear" in own and own != repr(plain)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"classifier.weight": torch.ones(2, 64)}, "unknown: classifier.weight"),
        (lambda s: s | {"text_model.lora_A": torch.ones(2)}, "unknown: text_model.lora_A"),
        (
            lambda s: s | {"vision_model.encoder.layers.0.gate": torch.ones(1)},
            "unknown: visual.transformer.resblocks.0.gate",
        ),
        (
            lambda s: {k: v for k, v in s.items() if "0.self_attn.k_proj.bias" not in k},
            "k_proj.bias; it is not complete",
        ),
        (
            lambda s: {k: v for k, v in s.items() if not k.startswith("text_model")},
            "token_embedding.weight missing",
        ),
        (
            lambda s: {k: v for k, v in s.items() if "layers.1.mlp.fc2" not in k},
            "missing: .*mlp.c_proj",
        ),
    ],
)
def test_what_would_be_left_out_is_refused_by_name(change, words, tmp_path):
    clip().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({k: v.clone() for k, v in change(load_file(path)).items()}, path)
    with pytest.raises(ValueError, match=words):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"model_type": "siglip"}, "'siglip' of transformers"),
        ({"text_config": {"hidden_act": "relu"}}, "activation both"),
        ({"vision_config": VISION | {"layer_norm_eps": 1e-6}}, "layer_norm_eps"),
    ],
)
def test_what_would_be_another_function_is_refused(told, words, tmp_path):
    clip().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | told))
    with pytest.raises(ValueError, match=words):
        load_backbone(tmp_path)


def test_a_folder_without_weights_and_one_that_lacks_parts(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights in the folder"):
        load_backbone(tmp_path)
    clip().save_pretrained(tmp_path, max_shard_size="3MB")
    sorted(tmp_path.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00001"):
        load_backbone(tmp_path)


def test_tensors_beside_a_state_dict_are_refused(tmp_path):
    state = {"a": torch.ones(2)}
    torch.save({"state_dict": state, "prompts": torch.ones(4), "epoch": 1}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="'prompts'"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_blip_with_more_parts_than_one_for_retrieval_is_refused(tmp_path):
    from oodnb.models.blip import _check_complete

    with pytest.raises(ValueError, match="such as classifier.weight"):
        _check_complete(tmp_path, [], ["classifier.weight"])
