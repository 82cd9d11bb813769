"""Run in a process of its own by test_rehearsal.py, on the stage of a rehearsal: reads every data
set and every file of weights with the library's own readers, and prints what it found as JSON."""

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

from PIL import Image

from oodnb.backbones import load_backbone
from oodnb.checks.random_weights import narrow_towers
from oodnb.checks.rehearsal import Stage, _author_files
from oodnb.checks.small_worlds import open_small_world
from oodnb.clipn.no_branch import import_no_branch
from oodnb.data import catalogue
from oodnb.datasets import load_dataset
from oodnb.methods.coop import import_context
from oodnb.pipeline.words import load_words
from oodnb.toe.captioners import load_captioner
from oodnb.toe.decoder_training import load_decoder
from oodnb.toe.outlier_texts import load_descriptors

MODELS = (
    ("RN50-quickgelu", "openai"),
    ("ViT-B-16-quickgelu", "openai"),
    ("ViT-B-32-quickgelu", "openai"),
    ("ViT-L-14-quickgelu", "openai"),
    ("ViT-B-16", "laion2b_s34b_b88k"),
    ("ViT-B-32", "laion2b_s34b_b79k"),
    ("blip-base", None),
    ("blip-large", None),
)
stage = Stage(Path(sys.argv[1]))
warnings.simplefilter("ignore")


def read_sets():
    "Name and split -> [pictures, modes of the first five]."
    found = {}
    for name, entry in catalogue.entries().items():
        if entry.layout == "pcam" and not importlib.util.find_spec("h5py"):
            continue
        for split in list(entry.splits)[:6]:
            images = load_dataset(name, split)
            modes = [images.read(i).mode for i in range(min(5, len(images)))]
            found[f"{name}/{split}"] = [images.name, len(images), modes]
    return found


def read_weights():
    "What is read -> what it says of itself."
    models = {name: load_backbone(name, tag, "cpu") for name, tag in MODELS}
    files, openai = _author_files(stage), models["ViT-B-16-quickgelu"]
    told = {name: [model.embed_dim, model.grid] for name, model in models.items()}
    alone = load_backbone(stage.folder / "home/weights/ViT-B-32-quickgelu--openai.pt", device="cpu")
    told["by its shapes"] = [alone.embed_dim, alone.grid]
    told["context"] = import_context(files["context"], openai, ["cat", "dog"]).settings["epochs"]
    told["branch"] = import_no_branch(files["clipn-2"], models["ViT-B-16"]).prompts
    folder = stage.folder / "data" / "toe" / "decoder"
    decoder = load_decoder(folder, weights=folder / "decoder.pt")
    told["decoder"] = [decoder.feature_dim, len(decoder.vocabulary)]
    told["caption"] = load_captioner("blip2-opt-2.7b", "cpu").write([Image.new("RGB", (40, 30))])
    return told


closed = {}
for name in ("ImageNet", "NINCO", "StanfordDogs"):
    try:
        load_dataset(name)
    except ValueError as error:
        closed[name] = str(error)
opened = load_dataset("NINCO", allow_different=True)
open_small_world(os.environ["OODNB_DATA"])
narrow_towers(os.path.join(os.environ["OODNB_HOME"], "architectures"))
found = {
    "closed": closed,
    "opened": [len(opened), opened.about["different"]],
    "sets": read_sets(),
    "weights": read_weights(),
    "words": len(load_words("dwyl")),
    "descriptors": len(load_descriptors("imagenet")),
}
print(json.dumps(found))
