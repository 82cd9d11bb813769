"""BLIP as a backbone: features of the published computation, folders, pictures, and what is
refused."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
import transformers

from oodnb.backbones import Backbone, load_backbone
from oodnb.models.blip import tiny_blip
from oodnb.detectors import zero_shot
from oodnb.prompts import PromptContext, zero_shot_classifier
from reference import cases, close

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "dog", "##s", "."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BLIP with a vocabulary of eleven words, as transformers saves it."""
    folder = tmp_path_factory.mktemp("blip") / "small"
    text = dict(
        vocab_size=len(WORDS),
        hidden_size=16,
        encoder_hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=12,
        bos_token_id=2,
        pad_token_id=0,
        sep_token_id=3,
    )
    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=24,
        patch_size=8,
    )
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=8
    )
    transformers.BlipForImageTextRetrieval(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    with pytest.warns(UserWarning, match="temperature of the BLIP"):
        return load_backbone(folder, device="cpu")


@pytest.mark.parametrize("case", cases("hftt", "blip_features*.npz"))
def test_features(case):
    model = tiny_blip(int(case["weight_seed"]))
    ids, mask = (torch.from_numpy(case[name]).long() for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        close(model.encode_text(ids, mask=mask), case["text_features_raw"], atol=1e-5)
        close(model.encode_text(ids, True, mask), case["text_features"], atol=1e-5)
        close(
            model.encode_image(torch.from_numpy(case["images"])),
            case["image_features_raw"],
            atol=1e-5,
        )
        close(
            model.encode_image(torch.from_numpy(case["images"]), True),
            case["image_features"],
            atol=1e-5,
        )


def test_a_folder_is_a_backbone(backbone, folder):
    assert (backbone.name, backbone.embed_dim, backbone.grid, backbone.image_size) == (
        "small",
        8,
        None,
        (24, 24),
    )
    assert backbone.logit_scale == pytest.approx(1 / 0.07)
    with pytest.warns(UserWarning, match="temperature"):
        again = load_backbone(str(folder), device="cpu")
    assert again.fingerprint == backbone.fingerprint
    with pytest.raises(ValueError, match="is loaded by its path"):
        load_backbone(folder, "openai")


def test_the_batch_does_not_matter(backbone):
    texts = ["a photo of a cat.", "dogs", "", "a a a a a a a a"]
    together = backbone.encode_texts(texts)
    assert together.shape == (4, 8) and together.dtype == torch.float32
    close(torch.cat([backbone.encode_texts([text]) for text in texts]), together, atol=1e-5)
    close(backbone.encode_texts(texts, batch_size=2), together, atol=1e-5)
    with pytest.raises(ValueError, match="Text number 1 has 14 tokens"):
        backbone.encode_texts(["a", "cat " * 12])


@pytest.mark.parametrize("size, mode", [((40, 30), "RGB"), ((24, 24), "L"), ((7, 90), "RGB")])
def test_pictures_are_squeezed_not_cropped(backbone, folder, size, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    resized = np.asarray(picture.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC))
    close(
        backbone.preprocess(picture),
        (torch.from_numpy(resized).permute(2, 0, 1) / 255 - mean) / std,
        atol=1e-6,
    )


def test_zero_shot_and_what_it_cannot_do(backbone):
    assert zero_shot_classifier(backbone, ["cat", "dog"]).shape == (2, 8)
    assert [d.name for d in zero_shot(backbone, ["cat", "dog"], scores=("mcm", "energy"))] == [
        "mcm",
        "energy",
    ]
    with pytest.raises(ValueError, match="no local features"):
        zero_shot(backbone, ["cat"], scores=("gl_mcm",))
    with pytest.raises(ValueError, match="not causal in the way that prompts need"):
        PromptContext(backbone, ["cat"], 2)
    with pytest.raises(ValueError, match="no local features"):
        backbone.encode_images(torch.zeros(1, 3, 24, 24), local=True)


def test_temperatures_of_the_published_models():
    assert Backbone(
        tiny_blip(0), None, lambda texts: None, "tiny", device="cpu"
    ).logit_scale == pytest.approx(1 / 0.0174)
    assert Backbone(
        tiny_blip(0, 0.0222), None, lambda texts: None, "tiny", device="cpu"
    ).logit_scale == pytest.approx(1 / 0.0222)


def test_without_the_extra(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("blip-base", "blip-large", folder):
        with pytest.raises(ImportError, match=r"pip install 'oodnb\[blip\]'"):
            load_backbone(name)


def test_a_blip_for_another_task_is_refused(folder, tmp_path):
    config = transformers.BlipConfig.from_pretrained(folder)
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not one for retrieval"):
        load_backbone(tmp_path)


def test_a_damaged_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(RuntimeError, match="cannot be loaded.*save_pretrained"):
        load_backbone(tmp_path)
