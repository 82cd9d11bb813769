"""The library against the thirty lines that a user would write on open_clip, phase by phase.

    python benchmarks/plain_user.py                       ViT-B-16 with random weights, 200 JPEGs
    python benchmarks/plain_user.py --backbone mini       the embedded world's own model
    python benchmarks/plain_user.py --small               a few pictures

The case is the common one: some hundred JPEGs in a folder, a list of class names, one process.
Phases are start (a process that imports and has a model), decode (files to a batch of pixels),
encode (pixels to features), score (features to softmax scores), and the whole after the start. The
scores of both ways are compared too. Seconds are processor time, so both ways work without
workers: decoding in threads or processes changes what a person waits and not what is computed; the
wall time with the defaults of both (threads here, `num_workers=0` there) is the last pair."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

import harness
from oodnb.backbones import Backbone, load_backbone
from oodnb.benchmark import checked_scores
from oodnb.datasets import load_dataset
from oodnb.detectors import zero_shot
from oodnb.features import Features, encode_pixels, extract

NAMES = ["cat", "dog", "boat", "car", "tree", "house", "bird", "chair", "cup", "lamp"]


class Plain(torch.utils.data.Dataset):
    "What a user writes to read a folder."

    def __init__(self, folder, preprocess):
        self.files, self.preprocess = sorted(Path(folder).rglob("*.jpg")), preprocess

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.preprocess(Image.open(self.files[i]).convert("RGB"))


def plain_pixels(folder, preprocess, size):
    return list(torch.utils.data.DataLoader(Plain(folder, preprocess), batch_size=size))


@torch.no_grad()
def plain_features(model, batches):
    return torch.cat([model.encode_image(batch) for batch in batches])


@torch.no_grad()
def plain_classifier(model, tokenizer):
    texts = model.encode_text(tokenizer([f"a photo of a {name}" for name in NAMES]))
    return texts / texts.norm(dim=-1, keepdim=True)


@torch.no_grad()
def plain_scores(features, classifier):
    features = features / features.norm(dim=-1, keepdim=True)
    return (features @ classifier.T).softmax(dim=-1).max(dim=-1).values


def make_pictures(folder, count, side=(500, 375)):
    "JPEGs of the size of ImageNet's: noise that is smooth, as photographs are."
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize(side, Image.Resampling.BICUBIC).save(
            Path(folder) / f"{i:05d}.jpg", quality=90
        )


STARTS = {
    "ours": (
        "import oodnb.backbones, open_clip; m, _, p = open_clip.create_model_and_transforms"
        "({name!r}); oodnb.backbones.Backbone(m, p, open_clip.get_tokenizer({name!r}), {name!r})"
    ),
    "theirs": (
        "import torch, open_clip; open_clip.create_model_and_transforms({name!r}); "
        "open_clip.get_tokenizer({name!r})"
    ),
}
MINI = {
    "ours": "import oodnb; oodnb.load_backbone('mini')",
    "theirs": "import torch, open_clip; open_clip.create_model_and_transforms('ViT-S-32')",
}


def start(name, side):
    code = (MINI if name == "mini" else STARTS)[side].format(name=name)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=harness.ROOT, capture_output=True)


def random_weights(name):
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return Backbone(model, preprocess, open_clip.get_tokenizer(name), name, "random", "cpu")


def our_pixels(backbone, images, size):
    read = lambda i: backbone.preprocess(images.read(i))
    starts = range(0, len(images), size)
    return [torch.stack([read(i) for i in range(s, min(s + size, len(images)))]) for s in starts]


def phases(backbone, folder, size, repeats):
    "Pairs of decode, encode, score and the whole; the largest difference of the scores."
    images, model = load_dataset(str(folder)), backbone.model
    detector = zero_shot(backbone, NAMES, "mcm", templates="photo")[0]
    classifier = plain_classifier(model, backbone.tokenizer)
    batches = plain_pixels(folder, backbone.preprocess, size)
    features = plain_features(model, batches)
    held = Features(features, images.labels, list(images.ids), "own", "test", backbone.fingerprint)

    def ours():
        found = extract(backbone, images, cache=False, batch_size=size, workers=0, progress=False)
        return checked_scores(detector, found)

    def threaded():
        extract(backbone, images, cache=False, batch_size=size, progress=False)

    def theirs():
        read = plain_pixels(folder, backbone.preprocess, size)
        return plain_scores(plain_features(model, read), classifier)

    encode = lambda: [encode_pixels(backbone, b, False, ["?"] * len(b)) for b in batches]
    turns = {
        "decode": (
            lambda: our_pixels(backbone, images, size),
            lambda: plain_pixels(folder, backbone.preprocess, size),
        ),
        "encode": (encode, lambda: plain_features(model, batches)),
        "score (100 times)": (
            lambda: [checked_scores(detector, held) for _ in range(100)],
            lambda: [plain_scores(features, classifier) for _ in range(100)],
        ),
        "whole, after the start": (ours, theirs),
    }
    pairs = [harness.compare(name, *both, repeats) for name, both in turns.items()]
    walls = [(_wall(threaded), _wall(theirs)) for _ in range(repeats)]
    pairs.append(harness.pair("whole on the wall, defaults", *map(list, zip(*walls))))
    return pairs, float(np.abs(ours() - theirs().double().numpy()).max())


def _wall(function):
    before = time.perf_counter()
    function()
    return time.perf_counter() - before


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    harness.options_of(parser).add_argument("--backbone", default="ViT-B-16")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--starts", type=int, default=3, help="turns of the start; 0 leaves it out")
    options = parser.parse_args(arguments)
    count, repeats = (24, 3) if options.small else (options.images, options.repeats)
    name, pairs = ("mini" if options.small else options.backbone), []
    if options.starts and not options.small:
        sides = [lambda side=side: start(name, side) for side in ("ours", "theirs")]
        pairs.append(harness.compare("start", *sides, options.starts, warm=1))
    backbone = load_backbone("mini", device="cpu") if name == "mini" else random_weights(name)
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(folder, count)
        found, difference = phases(backbone, folder, 32, repeats)
    told = f"{backbone.name}, {count} pictures"
    values = [harness.value("largest difference of the scores", difference, "")]
    return harness.report(f"plain user: {told}", pairs + found, values, "cpu", options.json)


if __name__ == "__main__":
    main()
