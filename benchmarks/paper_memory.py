"""How much memory do the parts of the papers' experiments take that hold large arrays, at full
count? Features are random, towers are not asked: what is measured is what stands in memory.

    python benchmarks/paper_memory.py                every part, in a process of its own
    python benchmarks/paper_memory.py --parts words  only some
    python benchmarks/paper_memory.py --share 0.1    a tenth of the pictures, for a small machine

Each line says the peak of the process and, with a smaller share, what it would be at full count,
from this share and half of it: what does not grow with the pictures stays. The exit code is 1 when
a part would need more than 20 GB. Scores of cached features and of streamed regions have a
benchmark of their own: python benchmarks/benchmark_pass.py --rescore 85640, and --local 2000.
"""

import argparse
import resource
import subprocess
import sys

import numpy as np
import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from oodnb.checks.random_weights import narrow_config
from oodnb.clipn.no_branch import NoBranch
from oodnb.data.image_sets import ImageSet
from oodnb.measure.class_statistics import class_statistics
from oodnb.methods.clipn import class_weights
from oodnb.metrics import detection_metrics
from oodnb.models.backbone import Backbone, plain_preprocess
from oodnb.scores import mcm
from oodnb.toe.outlier_texts import word_outliers

LIMIT = 20.0  # GB
WIDTH, CLASSES, TEST, TRAIN, OOD = 512, 1000, 50_000, 1_281_167, 41_519
WORDS, PAIRS, TEMPLATES = 50_358, 2_891_445, 128


def drawn(rows, width=WIDTH, seed=0):
    """Unit rows, float32."""
    features = torch.empty(rows, width).normal_(generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features, out=features)


def words(share):
    """toe_criteria, toe_imagenet: the first word of 50,000 pictures over 50,358 tokens."""
    features, to_words = drawn(int(TEST * share)), drawn(WORDS, seed=1).T
    logits = (part @ to_words for part in features.split(256))
    vocabulary = [f"word{i}" for i in range(WORDS)]
    return len(word_outliers(logits, vocabulary, ["cat", "dog"]))


def statistics(share):
    """toe_imagenet, toe_criteria, more_detectors: means and covariance of ImageNet's training."""
    rows = int(TRAIN * share)
    found = class_statistics(drawn(rows), torch.arange(rows) % CLASSES, CLASSES, normalize=True)
    return len(found.means)


def scores(share):
    """zeroshot_imagenet, locoop_imagenet, hftt_imagenet: all zero-shot scores and their metrics."""
    id_rows, ood_rows, texts = int(TEST * share), int(OOD * share), drawn(CLASSES, seed=1)
    told = [
        np.concatenate([mcm(part @ texts.T).numpy() for part in drawn(rows, seed=rows).split(256)])
        for rows in (id_rows, ood_rows)
    ]
    return detection_metrics(*told)["n_id"]


def clipn_texts(share):
    """clipn_*: yes and no texts of 1,000 classes in 128 templates, by a narrow text tower."""
    config = narrow_config("ViT-B-16")
    model = open_clip.CLIP(**{k: config[k] for k in ("embed_dim", "vision_cfg", "text_cfg")})
    tools = plain_preprocess(224), open_clip.get_tokenizer("ViT-B-16")
    backbone = Backbone(model.eval(), *tools, "narrow", "random", "cpu")
    names = IMAGENET_CLASSNAMES[: int(CLASSES * share)]
    return [len(side) for side in class_weights(backbone, NoBranch(backbone), names, cache=False)]


def clipn_captions(share):
    """clipn_*: the captions of CC3M and their features, where they are kept."""
    captions = [f"a photo of thing number {i} on the beach" for i in range(int(PAIRS * share))]
    return len(captions), len(drawn(len(captions)))


def training_list(share):
    """All notebooks: ids and labels of ImageNet's training pictures."""
    ids = [f"n01440764/n01440764_{i}.JPEG" for i in range(int(TRAIN * share))]
    labels = np.arange(len(ids)) % CLASSES
    images = ImageSet("ImageNet", "train", ids, labels, IMAGENET_CLASSNAMES, ids.index, "none")
    return len(images.subset(range(0, len(images), 2)))


PARTS = {
    part.__name__: part
    for part in (words, statistics, scores, clipn_texts, clipn_captions, training_list)
}


def peak():
    """GB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measured(part, share):
    """GB at the peak of a part, in a process of its own."""
    told = subprocess.run(
        [sys.executable, __file__, "--only", part, "--share", str(share)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(told.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of the full count")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        PARTS[args.only](args.share)
        print(peak())
        return 0
    worst = 0.0
    for part in args.parts:
        full = most = measured(part, args.share)
        if args.share < 1:
            half = measured(part, args.share / 2)
            full = most + (most - half) / (args.share / 2) * (1 - args.share)
        worst = max(worst, full)
        print(f"{part}: {most:.1f} GB at {args.share:g} of the count, {full:.1f} GB at all of it")
    print(f"largest: {worst:.1f} GB, allowed are {LIMIT:.0f} GB")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
