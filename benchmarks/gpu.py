"""One script for whoever has a card: what a training, a pass and a tower cost on it, whether a step
waits for the card, and whether its numbers are those of a processor. At most eight minutes.

    python benchmarks/gpu.py                          writes benchmarks/measured/gpu_<card>.csv
    python benchmarks/gpu.py --device cpu --tiny      a rehearsal without a card, in seconds

Weights are random and pictures are made here, so nothing is downloaded. What would take longer is
measured over some steps and multiplied; the column `how` says by what. Rows that came too late
(--minutes), that failed or that were only rehearsed keep "not measured" and say so. The limits
are arithmetic alone at 790 TFLOP/s and 4.3 TB/s (one H200), the goals are the project's own.
"""

import argparse
import csv
import itertools
import re
import tempfile
import time
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F

import clipn
import harness
import plain_user
from oodnb.backbones import Backbone, tiny_clip
from oodnb.data.crops import random_crops
from oodnb.datasets import load_dataset
from oodnb.detectors import text_detectors
from oodnb.features import Features, in_order
from oodnb.hftt import training as hftt
from oodnb.methods.coop import _batch_logits, coop_terms
from oodnb.methods.locoop import watched_terms
from oodnb.models.fast_tokens import fast_rows
from oodnb.pipeline import train as loop
from oodnb.prompts import PromptContext
from oodnb.toe import classifier_heads as heads

COLUMNS = ("part", "name", "value", "unit", "limit", "goal", "how")
NOT = "not measured"
TOWERS = (
    "RN50 RN101 RN50x4 ViT-B-32 ViT-B-16 ViT-L-14 ViT-L-14-336 ViT-B-16-SigLIP ViT-B-16-plus-240 "
    "convnext_base ViT-H-14 ViT-g-14"
).split()
PICTURES, STEPS, WORDS = 85_640, 25_000, 370_000


class Sheet:
    "Rows that are there from the start and are filled in as time allows."

    def __init__(self, minutes, rehearsal=False):
        self.rows, self.end, self.rehearsal = [], time.monotonic() + 60 * minutes, rehearsal

    def plan(self, part, name, unit, limit="", goal=""):
        row = dict.fromkeys(COLUMNS, "") | dict(part=part, name=name, value=NOT, unit=unit)
        self.rows.append(row | dict(limit=limit, goal=goal))

    def fill(self, name, measure):
        "`measure()` gives (value, how it was measured)."
        row = next(row for row in self.rows if row["name"] == name)
        if time.monotonic() > self.end:
            row["how"] = "the time was up"
            return
        try:
            value, row["how"] = measure()
            value = value if isinstance(value, str) else f"{value:.4g}"
            if self.rehearsal:
                value, row["how"] = NOT, f"rehearsed without a card: {value} ({row['how']})"
            row["value"] = value
        except Exception as error:
            row["how"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        print(f"{row['part']:<9} {name}: {row['value']} {row['unit']}  {row['how']}", flush=True)

    def write(self, path, about):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, (*COLUMNS, *about), lineterminator="\n")
            table.writeheader()
            table.writerows(row | about for row in self.rows)


class Bench:
    "Backbone and sizes of a run."

    def __init__(self, options):
        self.device, self.tiny = torch.device(options.device), options.tiny
        self.repeats = 2 if self.tiny else 50
        self.batch, self.size = (4, 8) if self.tiny else (32, 256)
        names = open_clip.IMAGENET_CLASSNAMES
        self.names = names[:6] if self.tiny else names
        self.backbone = self.tower("ViT-B-16", "auto")

    def tower(self, name, precision="fp32"):
        if self.tiny:
            precision = "fp32" if precision == "fp16" else precision
            return tiny_clip("vit_a", 0, self.device, precision)
        torch.manual_seed(0)
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        return Backbone(model, preprocess, tokenizer, name, "random", self.device, precision)

    def each(self, function, repeats=None):
        "Seconds of one call, the mean of many that follow each other."
        repeats = repeats or self.repeats
        function(), function()
        return (
            harness.seconds_of(lambda: [function() for _ in range(repeats)], self.device)[0]
            / repeats
        )

    def unit(self, *shape, seed=0):
        rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        return F.normalize(rows, dim=-1).to(self.device)

    def pixels(self, backbone, count):
        side = backbone.image_size or (224, 224)
        return torch.rand(count, 3, *side, device=self.device)


# ---- trainings


def learner(bench, method, backbone=None):
    "(optimizer, batch, loss_of) of a step of CoOp or LoCoOp on features of a view bank."
    backbone = backbone or bench.backbone
    context = PromptContext(backbone, bench.names, generator=torch.Generator().manual_seed(0))
    regions, device = backbone.grid[0] * backbone.grid[1], backbone.device
    local = bench.unit(bench.batch, regions, backbone.embed_dim, seed=1).to(device)
    labels = torch.arange(bench.batch, device=device) % len(bench.names)
    images = bench.unit(bench.batch, backbone.embed_dim).to(device)
    optimizer = torch.optim.SGD([context.vectors], lr=0.002, momentum=0.9)
    top_k = max(1, len(bench.names) // 5)

    def loss_of(batch):
        logits, local_logits, labels = _batch_logits(context, batch, 100.0)
        if method == "coop":
            return coop_terms(logits, None, labels)
        return watched_terms(logits, local_logits, labels, top_k=top_k)

    return optimizer, (images, local if method == "locoop" else None, labels), loss_of


def locoop_run(bench):
    one = learner(bench, "locoop")
    seconds = bench.each(lambda: loop._one_step(*one))
    return STEPS * seconds, f"{1000 * seconds:.2f} ms a step x {STEPS:,}"


def three_seeds(bench):
    several = [learner(bench, "locoop") for _ in range(3)]
    seconds = bench.each(lambda: [loop._one_step(*one) for one in several])
    return STEPS * seconds, f"one after the other, {1000 * seconds:.2f} ms for three steps"


def fresh_crops(bench, folder):
    "A step that reads, crops and encodes its pictures itself."
    one, images = learner(bench, "locoop"), load_dataset(str(folder))
    side, batch = bench.backbone.image_size or (224, 224), one[1]

    def step():
        crops = random_crops(images, side, 1, 0)
        numbers = range(min(bench.batch, len(crops)))
        read = in_order(lambda i: bench.backbone.preprocess(crops.read(i)), numbers, 16, 64)
        found = bench.backbone.encode_images(torch.stack(list(read)).to(bench.device), local=True)
        part = tuple(F.normalize(rows, dim=-1) for rows in found)
        loop._one_step(one[0], (*part, batch[2][: len(part[0])]), one[2])

    seconds = bench.each(step, max(2, bench.repeats // 10))
    return STEPS * seconds, f"{1000 * seconds:.1f} ms a step x {STEPS:,}; PIL, 16 threads"


def clipn_run(bench):
    size, precision = 8 if bench.tiny else 128, bench.backbone.precision
    step = clipn.Step(
        bench.backbone, types.SimpleNamespace(batch=size, ranks=1, precision=precision)
    )
    seconds, count = bench.each(lambda: step(False), max(2, bench.repeats // 5)), 10 * 2_900_000
    return count / size * seconds, f"{1000 * seconds:.1f} ms for {size} captions, 29 million pairs"


def hftt_run(bench):
    words = [f"word{i}" for i in range(64 if bench.tiny else 16_384)]
    encode = lambda: bench.backbone.encode_texts([f"a photo of a {w}" for w in words], 1024)
    encoded = bench.each(encode, 1) / len(words) * WORDS
    optimizer, batch, loss_of = step_of(hftt, lambda: hftt_call(bench, 5))
    trained = bench.each(lambda: loop._one_step(optimizer, batch, loss_of)) * WORDS / 256
    return (
        encoded + trained,
        f"{encoded:.2f} s of words, {trained:.2f} s of steps, five runs at once",
    )


def hftt_call(bench, runs):
    width = bench.backbone.embed_dim
    start = [bench.unit(10, width, seed=3 + i) for i in range(runs)]
    rows = [bench.unit(n, width, seed=n) for n in (len(bench.names), 40 * len(bench.names), 512)]
    return hftt.train_outliers(*rows, start, lambda _: torch.arange(512))


def toe_call(bench):
    width, classes = bench.backbone.embed_dim, len(bench.names)
    generator = torch.Generator().manual_seed(0)
    head = heads.make_head("linear", width, classes, generator=generator)
    head = [tuple(part.to(bench.device) for part in layer) for layer in head]
    images, texts = bench.unit(64, width, seed=1), bench.unit(48, width, seed=2)
    order = lambda _: (torch.arange(64), torch.arange(48))
    settings = heads.TOESettings(loss="uniform")
    labels = (torch.arange(64) % classes).to(bench.device)
    return heads.train_head(images, labels, texts, [head], order, settings, noisy=False)


def step_of(module, call):
    "What a method hands to the loop: (optimizer, batch, loss_of)."
    caught, kept = [], module.train

    def catch(optimizer, rates, batches, loss_of, **_):
        caught.extend((optimizer, next(iter(batches(0))), loss_of))
        raise InterruptedError

    module.train = catch
    try:
        call()
    except InterruptedError:
        return caught
    finally:
        module.train = kept
    raise RuntimeError("the method did not train")


# ---- checks


@contextmanager
def no_waits(device):
    "Raises where the processor waits for the card; on a processor nothing is checked."
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(bench, method):
    makers = {
        "CoOp": lambda: learner(bench, "coop"),
        "LoCoOp": lambda: learner(bench, "locoop"),
        "HFTT": lambda: step_of(hftt, lambda: hftt_call(bench, 2)),
        "TOE": lambda: step_of(heads, lambda: toe_call(bench)),
    }
    one = makers[method]()
    loop._one_step(*one)
    with no_waits(bench.device):
        loop._one_step(*one)
    return "none" if bench.device.type == "cuda" else NOT, "one step after a first one"


def equal_contexts(bench):
    "Largest difference of a context after three steps here and on the processor, in fp32."
    found = []
    for device in (bench.device, torch.device("cpu")):
        tiny = tiny_clip("vit_a", 0, device)
        part = Bench.__new__(Bench)
        part.__dict__ |= vars(bench) | dict(names=bench.names[:6], batch=4, device=device)
        one = learner(part, "locoop", tiny)
        for _ in range(3):
            loop._one_step(*one)
        found.append(one[0].param_groups[0]["params"][0].detach().cpu())
    return (found[0] - found[1]).abs().max().item(), "a tiny tower, fp32, three steps of LoCoOp"


def equal_tokens(bench):
    own, words = open_clip.SimpleTokenizer(), [f"word {i}, it's" for i in range(512)]
    return float((fast_rows(own, words) - own(words)).abs().max()), "512 texts"


# ---- passes


def one_pass(bench, local):
    "All pictures of four sets from pixels that are there, scored."
    backbone, device = bench.backbone, bench.device
    pixels = bench.pixels(backbone, bench.size).cpu()
    vectors = bench.unit(len(bench.names), backbone.embed_dim)
    kinds = ("mcm", "gl_mcm") if local else ("mcm",)
    detectors = text_detectors(vectors, [str(i) for i in range(len(vectors))], kinds)
    ids, labels = [str(i) for i in range(len(pixels))], np.full(len(pixels), -1)

    def step():
        found = backbone.encode_images(pixels.to(device), local=local)
        image, maps = found if local else (found, None)
        maps = None if maps is None else maps.cpu()
        held = Features(image.cpu(), labels, ids, "made", "test", None, maps)
        return [d.score(held) for d in detectors]

    seconds = bench.each(step, max(2, bench.repeats // 10)) / len(pixels)
    return PICTURES * seconds, f"{1 / seconds:,.0f} pictures a second x {PICTURES:,}"


def from_jpeg(bench, folder):
    images = load_dataset(str(folder))
    read = lambda i: bench.backbone.preprocess(images.read(i)).shape
    seconds = plain_user._wall(lambda: list(in_order(read, range(len(images)), 16, 64)))
    each = seconds / len(images)
    return PICTURES * each, f"decoding alone, 16 threads, {1 / each:,.0f} pictures a second"


def tower_row(bench, name, precision, compiled):
    backbone = bench.tower(name, precision)
    pixels, encode = bench.pixels(backbone, bench.size), backbone.model.encode_image
    if compiled and not bench.tiny:
        encode = torch.compile(encode)

    def step():
        with backbone.running():
            return encode(pixels)

    seconds = bench.each(step, 2 if bench.tiny else 10)
    return len(pixels) / seconds, f"batches of {len(pixels)}"


def planned(sheet):
    plan = sheet.plan
    plan("training", "LoCoOp, 25,000 steps, view bank", "s", 26, 75)
    plan("training", "LoCoOp, three seeds, view bank", "s", "", 150)
    plan("training", "LoCoOp, 25,000 steps, new crops", "s", 56, 420)
    plan("training", "CLIPN, ten epochs of CC3M, one view", "s", 253, 600)
    plan("training", "HFTT, 370,000 words, five runs", "s", 0.2, 10)
    plan("pass", "four sets from pixels, MCM", "s", 3.8, 7)
    plan("pass", "four sets from pixels, GL-MCM", "s", 3.8, 9)
    plan("pass", "four sets, decoding JPEG", "s", "", 45)
    for method in ("CoOp", "LoCoOp", "HFTT", "TOE"):
        plan("check", f"waits of a step of {method}", "", "none", "none")
    plan("check", "context here and on the processor", "", "", 1e-4)
    plan("check", "fast tokens against open_clip's", "", "", 0)
    for name, precision, how in towers():
        plan("tower", f"{name}, {precision}, {how}", "pictures/s")


def towers():
    return itertools.product(TOWERS, ("bf16", "fp16", "fp32"), ("eager", "compile"))


def measure(sheet, bench, folder):
    fill = sheet.fill
    for method in ("CoOp", "LoCoOp", "HFTT", "TOE"):
        fill(f"waits of a step of {method}", lambda: waits(bench, method))
    fill("context here and on the processor", lambda: equal_contexts(bench))
    fill("fast tokens against open_clip's", lambda: equal_tokens(bench))
    fill("LoCoOp, 25,000 steps, view bank", lambda: locoop_run(bench))
    fill("LoCoOp, three seeds, view bank", lambda: three_seeds(bench))
    fill("LoCoOp, 25,000 steps, new crops", lambda: fresh_crops(bench, folder))
    fill("HFTT, 370,000 words, five runs", lambda: hftt_run(bench))
    fill("CLIPN, ten epochs of CC3M, one view", lambda: clipn_run(bench))
    fill("four sets from pixels, MCM", lambda: one_pass(bench, False))
    fill("four sets from pixels, GL-MCM", lambda: one_pass(bench, True))
    fill("four sets, decoding JPEG", lambda: from_jpeg(bench, folder))
    for name, precision, how in itertools.islice(towers(), 2 if bench.tiny else None):
        made = lambda: tower_row(bench, name, precision, how == "compile")
        fill(f"{name}, {precision}, {how}", made)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with a tiny tower")
    parser.add_argument("--minutes", type=float, default=7.5, help="no row is begun later")
    parser.add_argument("--csv", type=Path, help="file (default: benchmarks/measured/gpu_*.csv)")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no card here; --device cpu --tiny rehearses without one")
    sheet, about = Sheet(options.minutes, options.tiny), harness.about(options.device)
    planned(sheet)
    with tempfile.TemporaryDirectory() as folder:
        plain_user.make_pictures(folder, 6 if options.tiny else 512)
        measure(sheet, Bench(options), folder)
    card = re.sub(r"\W+", "_", about.get("gpu", "cpu")).lower()
    path = options.csv or harness.ROOT / "benchmarks" / "measured" / f"gpu_{card}.csv"
    sheet.write(path, {k: about[k] for k in ("device", "torch", "commit", "day")} | {"card": card})
    print(f"written: {path}")
    return sheet.rows


if __name__ == "__main__":
    main()
