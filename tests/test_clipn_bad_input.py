"""What can be wrong with the pairs of a CLIPN training: each ends in an error that names it, or is
handled and counted, and nothing is lost."""

import gzip
import io
import json
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipn_job import RUN, SETTINGS, little_pairs

from oodnb.backbones import tiny_clip
from oodnb.captions import load_captions
from oodnb.clipn.pretrain import clipn_terms
from oodnb.losses import binary_opposite_loss, semantic_opposite_loss
from oodnb.methods.clipn import clipn_branches, clipn_plan, fit_clipn
from oodnb.running.notebook import gather

SHORT = replace(SETTINGS, epochs=1, warmup=0, prompts=2)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OODNB_DATA", raising=False)


@pytest.fixture(scope="module")
def clip():
    return tiny_clip("vit_a", device="cpu")


def said(pairs, **captions):
    """The pairs with other captions: c3="..." is that of pair 3."""
    return replace(
        pairs, captions=[captions.get(f"c{i}", caption) for i, caption in enumerate(pairs.captions)]
    )


def shard(path, pairs, count, wrap=lambda data: data):
    """The first pairs in a tar file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for i in range(count):
            picture = io.BytesIO()
            pairs.read(i).save(picture, "png")
            for suffix, data in (("png", picture.getvalue()), ("txt", pairs.captions[i].encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    path.write_bytes(wrap(packed.getvalue()))
    return path


def test_empty_captions_are_left_out_and_named(clip):
    with pytest.warns(
        UserWarning,
        match=r"20 image-caption pairs; 2 things were left out: 3.png: the caption is empty",
    ):
        pairs = load_captions(said(little_pairs(), c3="", c7=" \n"))
    assert (
        len(pairs) == 20
        and "3.png" not in pairs.ids
        and dict(pairs.about["skipped"])["7.png"] == "the caption is empty"
    )
    assert np.array_equal(np.asarray(pairs.read(3)), np.asarray(little_pairs().read(4)))
    with pytest.raises(ValueError, match="no image-caption pair. 22 things were left out"):
        load_captions(replace(little_pairs(), captions=[""] * 22))
    with pytest.raises(ValueError, match="has no captions"):
        fit_clipn(clip, replace(little_pairs(), captions=None), SHORT, **RUN)


def test_a_caption_of_500_words_is_cut_and_named(clip, tmp_path):
    with pytest.warns(
        UserWarning, match="1 of 22 pairs could not be read as they are: 5.png .the caption was cut"
    ):
        long = said(little_pairs(), c5="red " * 500)
        branch = fit_clipn(clip, long, SHORT, folder=tmp_path, **RUN)
    assert sum(row["cut"] for row in branch.history) >= 1 and all(
        np.isfinite(row["loss"]) for row in branch.history
    )
    assert json.loads((tmp_path / "skipped-0.json").read_text()) == {"5.png": "the caption was cut"}


def test_captions_with_braces_train_the_hand_crafted_variant(clip):
    branch = fit_clipn(
        clip,
        said(little_pairs(), c5="{} {red} {0}", c6='a "quoted" café'),
        replace(SHORT, prompts=0),
        **RUN,
    )
    assert all(np.isfinite(row["loss"]) for row in branch.history)


def test_a_batch_of_one(clip):
    with pytest.raises(ValueError, match="A batch of one pair has no mismatch"):
        fit_clipn(clip, little_pairs(), replace(SHORT, batch_size=1), **RUN)


def test_a_truncated_shard_trains_on_what_is_whole(clip, tmp_path):
    path = shard(
        tmp_path / "00000.tar", little_pairs(), 22, lambda data: data[: len(data) * 2 // 3]
    )
    with pytest.warns(UserWarning, match="cut off"):
        pairs = load_captions(path)
    assert 8 < len(pairs) < 22
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(fit_clipn(clip, path, SHORT, **RUN).history) == -(-len(pairs) // 8)


def test_shards_that_cannot_be_read(clip, tmp_path):
    with pytest.raises(
        ValueError,
        match="no image-caption pair. 1 things were left out: 0.tar: no tar file that can be read",
    ):
        load_captions(shard(tmp_path / "0.tar", little_pairs(), 2, gzip.compress))
    shard(tmp_path / "1.tar.gz", little_pairs(), 2, gzip.compress)
    with pytest.raises(ValueError, match="unpack it first"):
        load_captions(tmp_path / "1.tar.gz")
    with pytest.raises(FileNotFoundError, match="1 of 1 files or patterns name nothing"):
        fit_clipn(clip, tmp_path / "9.tar", SHORT, **RUN)


def test_zero_features_stay_zero():
    unit = F.normalize(torch.eye(4, dtype=torch.float64) + 0.1, dim=1)
    zero = unit.clone()
    zero[1] = 0
    for parts in ((zero, unit, unit), (unit, zero, unit), (unit, unit, zero)):
        no = parts[2].clone().requires_grad_()
        terms = clipn_terms(parts[0], parts[1], no, 100.0)
        (slope,) = torch.autograd.grad(terms["loss"], no)
        assert all(term.isfinite() for term in terms.values()) and slope.isfinite().all()
    match, mismatch = binary_opposite_loss(100 * zero @ unit.T, 100 * zero @ unit.T)
    assert (
        match.item() == mismatch.item() == pytest.approx(np.log(2))
        and semantic_opposite_loss(unit, zero).isfinite()
    )


def test_everything_that_is_missing_is_named_together(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_DATA", str(tmp_path))
    needs = clipn_plan("paper")["needs"]
    with pytest.raises(
        FileNotFoundError,
        match=(
            r"(?s)6 of 6 things are missing at scale 'paper'.*captions: "
            r".*cc3m.*ImageNet.*Textures"
        ),
    ):
        gather({name: load for name, load in needs.items() if name != "model"}, "paper")
    with pytest.raises(FileNotFoundError, match="no-such.pt"):
        clipn_branches(
            tiny_clip("vit_a", device="cpu"), None, checkpoints=[tmp_path / "no-such.pt"]
        )
