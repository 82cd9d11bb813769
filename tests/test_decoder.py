"""Text decoders and captioners: what they write, how they are kept, the published layout, and every
bad input."""

import json
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
import transformers

from oodnb.backbones import load_backbone
from oodnb.toe.captioners import DecoderCaptioner, caption_images, load_captioner
from oodnb.datasets import ImageSet
from oodnb.toe.decoder_training import (
    SMALL,
    DecoderSettings,
    fit_decoder,
    load_decoder,
    make_decoder,
    save_decoder,
)
from oodnb.toe.outlier_texts import word_outliers
from oodnb.toe.vocabulary import BEGIN, END, PAD, PieceTokenizer, learn_words

QUIET = dict(progress=False, keep=False)
QUICK = replace(SMALL, epochs=1, min_count=1, layers=1)
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(8, 60, layers=1, heads=2, positions=12, seed=1)


def coloured(count=12, captions="a photo of a {} wall", name="walls", unreadable=()):
    def read(i):
        if i in unreadable:
            raise OSError("broken file")
        return Image.fromarray(
            np.random.default_rng(i % 4).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        )

    texts = [captions.format(COLOURS[i % 4]) for i in range(count)]
    return ImageSet(
        name,
        "train",
        [f"{i}.png" for i in range(count)],
        np.full(count, -1),
        [],
        read,
        f"{name}-{count}-{captions}",
        texts,
    )


def rows(count, width=8, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


# what it learns and writes


def test_it_learns_to_name_what_it_sees(tiny):
    walls = coloured()
    changes = dict(epochs=60, batch_size=12, lr=2e-3, noise=0.0, dropout=0.0)
    decoder = fit_decoder(tiny, walls, replace(QUICK, **changes), **QUIET)
    assert decoder.history[-1]["loss"] < 0.5 * decoder.history[0]["loss"]
    assert (
        caption_images(DecoderCaptioner(tiny, decoder, tries=1), walls, cache=False, progress=False)
        == walls.captions
    )
    assert decoder.backbone == tiny.fingerprint and not decoder.training


def test_a_beam_is_never_less_likely_per_token(decoder):
    features = rows(5)

    def likelihood(text, row):
        ids = torch.tensor([[BEGIN, *decoder.tokenizer.encode(text), END]])[:, :9]
        with torch.no_grad():
            return -float(decoder.caption_loss(row[None], ids, ids > -1))

    greedy, beams = (
        decoder.write(features, max_tokens=8),
        decoder.write(features, max_tokens=8, beams=40),
    )
    for row, one, other in zip(features, greedy, beams):
        assert likelihood(other, row) >= likelihood(one, row) - 0.2


def test_drawn_words_follow_the_softmax(decoder):
    row = rows(1).repeat(4000, 1)
    words = decoder.write(
        row, max_tokens=1, temperature=2.0, generator=torch.Generator().manual_seed(0)
    )
    logits = decoder.first_logits(row[:1])[0] / 2
    logits[[PAD, BEGIN, 3]] = -math.inf
    expected = logits.softmax(0)
    best = int(expected.argmax())
    share = sum(word == decoder.vocabulary[best] for word in words) / len(words)
    assert share == pytest.approx(
        float(expected[best]), abs=4 * math.sqrt(expected[best] / len(words))
    )


def test_writing_does_not_depend_on_the_batch_or_the_mode(decoder):
    features = rows(7)
    together = decoder.write(features, max_tokens=6)
    decoder.train()
    assert decoder.write(features, max_tokens=6, batch_size=2) == together and decoder.training
    decoder.eval()
    assert decoder.write(torch.empty(0, 8), max_tokens=6) == []


def test_half_precision_features_are_read_as_float32(decoder):
    features = rows(3).half()
    assert torch.equal(decoder.first_logits(features), decoder.first_logits(features.float()))


# keeping


def test_a_kept_decoder_is_read_and_an_unfinished_one_goes_on(tiny, tmp_path):
    walls, quick = coloured(), dict(settings=replace(QUICK, epochs=3), progress=False)
    straight = fit_decoder(tiny, walls, keep=False, **quick)
    stopped = fit_decoder(tiny, walls, keep=tmp_path, stop_after=1, **quick)
    assert len(stopped.history) == 1 and not list(tmp_path.glob("*.safetensors"))
    done = fit_decoder(tiny, walls, keep=tmp_path, **quick)
    assert done.fingerprint == straight.fingerprint
    (path,) = tmp_path.glob("*.safetensors")
    assert not list(tmp_path.glob("*.training"))
    before = path.stat().st_mtime_ns
    assert (
        fit_decoder(tiny, walls, keep=tmp_path, **quick).fingerprint == done.fingerprint
        and path.stat().st_mtime_ns == before
    )
    fit_decoder(tiny, walls, keep=tmp_path, seed=1, **quick)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_whole_numbers_cut_the_decimals(tiny):
    cut = replace(QUICK, whole_numbers=True)
    assert (
        fit_decoder(tiny, coloured(), cut, **QUIET).fingerprint
        != fit_decoder(tiny, coloured(), QUICK, **QUIET).fingerprint
    )


# the published layout


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A language model of few words, laid out like
    google/bert_for_seq_generation_L-24_bbc_encoder."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("published")
    (folder / "texts.txt").write_text(
        "\n".join(
            f"a photo of a {colour} {thing} on the {place}"
            for colour in COLOURS
            for thing in ("cat", "dog", "wall")
            for place in ("grass", "road")
        )
    )
    spm.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    words = len(PieceTokenizer((folder / "spiece.model").read_bytes()).vocabulary)
    config = transformers.BertGenerationConfig(
        vocab_size=words,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    transformers.BertGenerationEncoder(config).save_pretrained(folder)
    return folder


def test_the_published_layout(tiny, published, tmp_path):
    with pytest.warns(UserWarning, match="never seen a picture"):
        start = load_decoder(published)
    assert (start.feature_dim, start.vocabulary[0]) == (32, "") and {"a", "photo"} & set(
        start.vocabulary
    )
    assert (
        start.tokenizer.decode(start.tokenizer.encode("a photo of a red cat"))
        == "a photo of a red cat"
    )
    assert (
        word_outliers(
            start.first_logits(rows(3, 32)), start.vocabulary, ["cat"], skip=3, top=9
        ).counts["made"]
        > 0
    )
    before = start.fingerprint
    trained = fit_decoder(tiny, coloured(), DecoderSettings(epochs=1), start=start, **QUIET)
    assert (trained.settings["layers"], trained.settings["inside"]) == (1, 0.5)
    with pytest.raises(ValueError, match="layers is 2, but the decoder that is to go on has 1"):
        fit_decoder(tiny, coloured(), SMALL, start=start, **QUIET)
    assert start.fingerprint == before != trained.fingerprint
    save_decoder(tmp_path / "own.safetensors", trained)
    assert load_decoder(tmp_path / "own.safetensors", tiny).fingerprint == trained.fingerprint
    state = {f"module.{name}": tensor for name, tensor in trained.model.state_dict().items()}
    torch.save(
        {
            "net": state | {"module.bert.embeddings.position_ids": torch.arange(40)[None]},
            "epoch": 3,
        },
        tmp_path / "trained.pt",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_decoder(published, weights=tmp_path / "trained.pt")
    assert torch.equal(again.first_logits(rows(2, 32)), trained.first_logits(rows(2, 32)))


def test_what_is_wrong_with_published_files(published, tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 damaged \xef\xbf\xbd")
    with pytest.raises(ValueError, match="cannot be read as weights.*Compare the size"):
        load_decoder(published, weights=tmp_path / "cut.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no weights of a BertGeneration"):
        load_decoder(published, weights=tmp_path / "other.pt")
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(2, 2)}, tmp_path / "small.pt")
    with pytest.raises(ValueError, match="do not fit the decoder"):
        load_decoder(published, weights=tmp_path / "small.pt")
    with pytest.raises(FileNotFoundError, match="There are no weights"):
        load_decoder(published, weights=tmp_path / "none.pt")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="has no spiece.model"):
        load_decoder(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no pieces"):
        load_decoder(tmp_path)
    (tmp_path / "spiece.model").write_bytes((published / "spiece.model").read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    with pytest.raises(ValueError, match="different models"):
        load_decoder(tmp_path)


# bad input of the decoder


@pytest.mark.parametrize(
    "features, message",
    [
        (torch.zeros(3, 5), r"\[N, 8\]"),
        (torch.zeros(8), r"\[N, 8\]"),
        (
            torch.tensor([[0.0] * 8, [math.nan] * 8, [math.inf] * 8]),
            "2 of 3 rows of features are not finite, first number 1",
        ),
    ],
)
def test_features_that_do_not_fit(decoder, features, message):
    for work in (decoder.first_logits, decoder.write):
        with pytest.raises(ValueError, match=message):
            work(features, **({"max_tokens": 3} if work == decoder.write else {}))


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        ([[2, 99, 1]], [[1, 1, 1]], "vocabulary has 60 tokens"),
        ([[2, -1, 1]], [[1, 1, 1]], "ids run from -1"),
        ([[2, 5, 1]], [[1, 1]], r"both are \[N, L\]"),
        ([[2.0, 5.0, 1.0]], [[1, 1, 1]], "whole numbers"),
        ([[2, 0, 0]], [[1, 0, 0]], "nothing to learn"),
        ([[2] * 14], [[1] * 14], "12 positions"),
    ],
)
def test_captions_that_do_not_fit(decoder, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        decoder.caption_loss(rows(1), torch.tensor(ids), torch.tensor(mask))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_tokens=0), "both are at least 1"),
        (dict(max_tokens=12), "places for 11 tokens"),
        (dict(beams=0), "both are at least 1"),
        (dict(temperature=1.0), "generator"),
        (dict(temperature=0.0, generator=torch.Generator()), "temperature above 0"),
        (dict(temperature=1.0, beams=2, generator=torch.Generator()), "one beam"),
    ],
)
def test_ways_of_writing_that_do_not_exist(decoder, options, message):
    with pytest.raises(ValueError, match=message):
        decoder.write(rows(2), **{"max_tokens": 5, **options})


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="cannot be made"):
        make_decoder(8, 60, layers=1, heads=3)
    with pytest.raises(ValueError, match="cannot be made"):
        make_decoder(8, 4, layers=1, heads=2)


def test_training_refuses_before_it_works(tiny, decoder, tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'leyers'"):
        fit_decoder(tiny, coloured(), leyers=2, **QUIET)
    with pytest.raises(TypeError, match="give DecoderSettings"):
        fit_decoder(tiny, coloured(), {"layers": 2}, **QUIET)
    with pytest.raises(ValueError, match="epochs is 0"):
        DecoderSettings(epochs=0)
    with pytest.raises(ValueError, match="smaller min_count"):
        fit_decoder(tiny, coloured(3), replace(SMALL, min_count=50), **QUIET)
    with pytest.raises(ValueError, match="8 numbers"):
        fit_decoder(tiny, coloured(), start=decoder, **QUIET)
    with pytest.raises(ValueError, match="has no captions"):
        silent = coloured()
        silent.captions = None
        fit_decoder(tiny, silent, **QUIET)


def test_pictures_that_cannot_be_read_are_left_out_of_training(tiny):
    with pytest.warns(UserWarning, match="1 of 12 pictures"):
        decoder = fit_decoder(tiny, coloured(unreadable=(5,), name="broken"), QUICK, **QUIET)
    assert decoder.settings["pairs"] == 11


def test_captions_that_are_longer_than_the_decoder_are_cut(tiny):
    long = coloured(captions="a {} " + "very " * 90 + "long wall")
    decoder = fit_decoder(tiny, long, replace(QUICK, positions=10), **QUIET)
    assert math.isfinite(decoder.history[0]["loss"])


def test_files_that_are_no_decoder(tmp_path, tiny):
    with pytest.raises(FileNotFoundError, match="There is no decoder"):
        load_decoder(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match="holds no decoder"):
        load_decoder(tmp_path / "text.safetensors")
    save_decoder(
        tmp_path / "other.safetensors", make_decoder(8, learn_words(["a b"], 1), layers=1, heads=1)
    )
    with pytest.raises(ValueError, match="another backbone"):
        load_decoder(tmp_path / "other.safetensors", tiny)


def test_a_vocabulary_below_55_words():
    decoder = make_decoder(8, 40, layers=1, heads=2, positions=12)
    with pytest.raises(ValueError, match="has 40 tokens and no rank 55"):
        word_outliers(decoder.first_logits(rows(2)), decoder.vocabulary, ["cat"])


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"A text decoder needs.*pip install 'oodnb\[blip\]'"):
        make_decoder(8, 60, layers=1, heads=2)


# captioners


def small_tokenizer(words, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", **special
    )


VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    image_size=24,
    patch_size=8,
)


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    folder, words = (
        tmp_path_factory.mktemp("blip"),
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "dog", "grass"],
    )
    text = dict(
        vocab_size=len(words),
        hidden_size=16,
        encoder_hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=24,
        bos_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=8)
    ).save_pretrained(folder)
    transformers.BlipProcessor(
        transformers.BlipImageProcessor(size={"height": 24, "width": 24}),
        transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip2_folder(tmp_path_factory):
    folder, words = (
        tmp_path_factory.mktemp("blip2"),
        ["<pad>", "</s>", "<unk>", "<image>", "a", "photo", "of", "cat", "dog", "grass"],
    )
    text = transformers.OPTConfig(
        tie_word_embeddings=False,
        vocab_size=len(words),
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    qformer = dict(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        encoder_hidden_size=16,
        max_position_embeddings=16,
    )
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=qformer,
        text_config=text.to_dict(),
        num_query_tokens=2,
        image_token_index=3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.Blip2ForConditionalGeneration(config)
    model.language_model.lm_head.weight = torch.nn.Parameter(
        torch.randn(len(words), 16) * (torch.arange(len(words)) > 3)[:, None]
    )
    model.save_pretrained(folder)
    tokenizer = small_tokenizer(
        words,
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    transformers.Blip2Processor(
        transformers.BlipImageProcessor(size={"height": 24, "width": 24}),
        tokenizer,
        num_query_tokens=2,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["blip_folder", "blip2_folder"])
def test_captioners_write_one_text_per_picture(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    model = load_captioner(folder, device="cpu", max_tokens=6)
    walls = coloured(5)
    texts = caption_images(model, walls, batch_size=2, cache=tmp_path, progress=False)
    assert len(texts) == 5 and all(
        text == text.strip() and "<" not in text and "[" not in text for text in texts
    )
    assert all(len(text.split()) <= 6 for text in texts) and any(texts)
    assert texts == caption_images(model, walls, batch_size=3, cache=False, progress=False)
    model.write = None
    assert caption_images(model, walls, cache=tmp_path, progress=False) == texts


def test_captions_that_were_kept_and_damaged_are_written_again(blip_folder, tmp_path):
    model, walls = load_captioner(blip_folder, device="cpu", max_tokens=4), coloured(4)
    texts = caption_images(model, walls, cache=tmp_path, progress=False, chunk=2)
    parts = sorted(tmp_path.glob("*.json"))
    assert len(parts) == 2
    parts[0].write_text('{"0.png": "a ca')
    with pytest.warns(UserWarning, match="damaged and written again"):
        assert caption_images(model, walls, cache=tmp_path, progress=False, chunk=2) == texts
    assert (
        caption_images(
            load_captioner(blip_folder, device="cpu", max_tokens=1),
            walls,
            cache=tmp_path,
            progress=False,
        )
        != texts
    )


def test_pictures_without_a_caption_are_counted(blip_folder, tiny, tmp_path):
    broken, decoder = (
        coloured(4, unreadable=(1,), name="with a broken one"),
        make_decoder(tiny.embed_dim, 60, layers=1, heads=2, positions=24),
    )
    for model in (
        load_captioner(blip_folder, device="cpu"),
        DecoderCaptioner(tiny, decoder, tries=2),
    ):
        with pytest.warns(
            UserWarning,
            match="1 of 4 pictures of with a broken one could not be read and have no caption",
        ):
            texts = caption_images(model, broken, cache=tmp_path, progress=False)
        assert texts[1] == "" and len(texts) == 4


def test_captioners_that_are_refused(blip_folder, tiny, decoder, tmp_path):
    with pytest.raises(ValueError, match="is no captioner. Did you mean"):
        load_captioner("blip-captions-bas")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="this one says 'clip'"):
        load_captioner(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(RuntimeError, match="captioner .* cannot be loaded"):
        load_captioner(tmp_path)
    with pytest.raises(ValueError, match="precision is 'fp8'"):
        load_captioner(blip_folder, precision="fp8")
    with pytest.raises(ValueError, match="max_tokens is 0"):
        load_captioner(blip_folder, max_tokens=0)
    with pytest.raises(ValueError, match="reads 8 numbers"):
        DecoderCaptioner(tiny, decoder)
    with pytest.raises(ValueError, match="tries is 0"):
        DecoderCaptioner(tiny, make_decoder(tiny.embed_dim, 60, layers=1, heads=2), tries=0)
    with pytest.raises(ValueError, match="at least 1"):
        caption_images(load_captioner(blip_folder, device="cpu"), coloured(2), batch_size=0)
    with pytest.raises(ValueError, match="has no pictures"):
        caption_images(load_captioner(blip_folder, device="cpu"), coloured(2).subset([]))


def test_a_blip_for_another_task_is_refused(blip_folder, tmp_path):
    transformers.BlipForImageTextRetrieval(
        transformers.BlipConfig.from_pretrained(blip_folder)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not one that writes captions"):
        load_captioner(tmp_path)
