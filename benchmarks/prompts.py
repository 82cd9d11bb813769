"""What does a training step of learned prompts cost? Shared and packed rows against the plain 77
positions, same numbers, in one run.

    python benchmarks/prompts.py                    ViT-B-16 with random weights, 100 and 1000
                                                    ImageNet names, 16 learned words: the text part
                                                    of a LoCoOp step
    python benchmarks/prompts.py --images           the image tower too: a whole step with fresh
                                                    crops, and one that reads a bank of encoded
                                                    views
    python benchmarks/prompts.py --precision bf16   or fp16: also the error that it brings
    python benchmarks/prompts.py --ensemble         a zero-shot classifier of seven templates too
    python benchmarks/prompts.py --small            a tiny tower and 24 names, in seconds
    python benchmarks/prompts.py --mini             instead: LoCoOp in the mini world, trained in
                                                    fp32 and in bf16 from the same start; time per
                                                    step, way of the context, AUROC

A step is forward, loss, backward and update. Time is processor time on a CPU (a busy machine does
not spoil it) and wall time on a GPU, the median of a few turns. "kept" is what the graph of the
text tower holds for the way back, "peak" what the step adds to the process (resident memory on
Linux) or to the GPU. Where the plain step does not fit (--at-once), its classes are encoded in
parts, forward and backward, which costs the same time; its memory is then that of one part times
the number of parts, and marked with *.
"""

import argparse
import ctypes
import gc
import logging
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import open_clip
import torch

from oodnb.backbones import Backbone, load_backbone, tiny_clip
from oodnb.datasets import load_dataset
from oodnb.features import extract
from oodnb.data.fewshot import few_shot
from oodnb.losses import locoop_loss
from oodnb.methods.coop import prompt_detectors
from oodnb.methods.locoop import LoCoOpSettings, fit_locoop
from oodnb.metrics import auroc
from oodnb.mini import MINI_OOD
from oodnb.prompts import TEMPLATES, PromptContext, encode_prompts, zero_shot_classifier
from oodnb.scores import normalize

NAMES = open_clip.IMAGENET_CLASSNAMES


def peak_of(function, device):
    """(result, bytes that it added at its highest); None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return function(), None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    memory = lambda field: (
        1024
        * int(
            next(
                line.split()[1]
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(field)
            )
        )
    )
    before = memory("VmRSS")
    result = function()
    return result, memory("VmHWM") - before


def kept_by(function, model):
    """Bytes that the graph of the result holds, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = function()
    del graph
    return sum(
        tensor.untyped_storage().nbytes() for where, tensor in held.items() if where not in weights
    )


def seconds(functions, device, repeats):
    """Median time of each, in turns, after one to warm up."""
    clock, times = (
        time.process_time if device.type == "cpu" else time.perf_counter,
        {name: [] for name in functions},
    )
    for turn in range(repeats + 1):
        for name, function in functions.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn or not repeats:
                times[name].append(clock() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


class TextStep:
    """The part of a LoCoOp step that is left when the features of the images are there."""

    def __init__(self, backbone, names, length, batch, regions, at_once):
        self.backbone, self.parts = backbone, [names]
        self.context = PromptContext(
            backbone, names, length, generator=torch.Generator().manual_seed(0)
        )
        random = lambda *shape: torch.randn(
            *shape, backbone.embed_dim, generator=torch.Generator().manual_seed(1)
        ).to(backbone.device)
        self.global_features, self.local_features = (
            normalize(random(batch)),
            normalize(random(batch, regions).flatten(0, 1)).reshape(batch, regions, -1),
        )
        self.labels = torch.arange(batch, device=backbone.device) % len(names)
        self.top_k = max(1, len(names) // 5)
        self.optimizer = torch.optim.SGD(
            [self.context.vectors], lr=0.002, momentum=0.9, weight_decay=5e-4
        )
        self.parts = (
            [
                self.context.for_classes(names[i : i + at_once])
                for i in range(0, len(names), at_once)
            ]
            if at_once < len(names)
            else [self.context]
        )

    def loss(self, features):
        text = normalize(features)
        scale = self.backbone.logit_scale
        return locoop_loss(
            scale * self.global_features @ text.T,
            scale * self.local_features @ text.T,
            self.labels,
            self.top_k,
        )

    def gradient(self, share):
        """Forward, loss and backward; the gradient of the learned words."""
        self.context.vectors.grad = None
        if share or len(self.parts) == 1:
            self.loss(encode_prompts(self.context, share)).backward()
        else:
            with torch.no_grad():
                features = encode_prompts(self.context)
            (upstream,) = torch.autograd.grad(self.loss(features.requires_grad_()), features)
            for part, gradient in zip(self.parts, upstream.split(len(self.parts[0].class_names))):
                encode_prompts(part, share=False).backward(gradient)
        return self.context.vectors.grad

    def __call__(self, share):
        self.gradient(share)
        self.optimizer.step()

    def memory(self, share):
        """(kept, peak, whether they are those of a part times the number of parts)."""
        if share or len(self.parts) == 1:
            _, peak = peak_of(lambda: self.gradient(share), self.backbone.device)
            return (
                kept_by(lambda: encode_prompts(self.context, share), self.backbone.model),
                peak,
                False,
            )
        whole = encode_prompts(self.parts[0], share=False)
        upstream = torch.ones_like(whole)
        del whole
        _, peak = peak_of(
            lambda: encode_prompts(self.parts[0], share=False).backward(upstream),
            self.backbone.device,
        )
        kept = kept_by(lambda: encode_prompts(self.parts[0], share=False), self.backbone.model)
        return len(self.parts) * kept, peak and len(self.parts) * peak, True


def megabytes(number, scaled):
    return "-" if number is None else f"{number / 2**20:,.1f}{'*' if scaled else ''}"


def measure(backbone, classes, options):
    """One line per way of encoding; returns what the tests look at."""
    step = TextStep(
        backbone, NAMES[:classes], options.length, options.batch, options.regions, options.at_once
    )
    first, plain_gradient = step.gradient(True).clone(), step.gradient(False).clone()
    error = ((first - plain_gradient).abs().max() / plain_gradient.abs().max()).item()
    if options.precision != "fp32":
        backbone.precision = "fp32"
        exact, backbone.precision = step.gradient(True).clone(), options.precision
        away = lambda gradient: ((gradient - exact).norm() / exact.norm()).item()
        print(
            f"\ngradients in {options.precision} are away from those in fp32 by "
            f"{away(first):.1e} (packed) and {away(plain_gradient):.1e} (plain)"
        )
    times = seconds(
        {"plain": lambda: step(False), "packed": lambda: step(True)},
        backbone.device,
        options.repeats,
    )
    memory = {"plain": step.memory(False), "packed": step.memory(True)}
    rows = {"plain": step.context.rows.numel(), "packed": len(step.context.packed.tokens)}
    print(
        f"\n{classes} classes, {options.length} learned words, {rows['packed']:,} of "
        f"{rows['plain']:,} rows; gradients differ by {error:.1e} of the "
        f"largest\n{'text step':<12}{'ms':>12}{'kept MB':>14}{'peak MB':>14}"
    )
    for name in times:
        print(
            f"{name:<12}{1000 * times[name]:>12,.1f}"
            f"{megabytes(memory[name][0], memory[name][2]):>14}"
            f"{megabytes(memory[name][1], memory[name][2]):>14}"
        )
    share = lambda place: (
        memory["plain"][place] / memory["packed"][place]
        if memory["packed"][place]
        else float("nan")
    )
    print(
        f"{'ratio':<12}{times['plain'] / times['packed']:>12.1f}{share(0):>14.1f}{share(1):>14.1f}"
    )
    return dict(
        classes=classes,
        error=error,
        faster=times["plain"] / times["packed"],
        kept=share(0),
        peak=share(1),
        times=times,
    )


def whole_steps(backbone, text, options):
    """With fresh crops the image tower runs in every step; a bank of views has run it before."""
    pixels = torch.randn(
        options.batch, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0)
    ).to(backbone.device)
    images = seconds(
        {"images": lambda: backbone.encode_images(pixels, local=True)},
        backbone.device,
        min(options.repeats, 1),
    )["images"]
    print(
        f"\nimage tower, {options.batch} images with local features: {1000 * images:,.1f} "
        f"ms\n{'whole step, ms':<26}{'fresh crops':>14}{'view bank':>14}"
    )
    for result in text:
        for name, taken in result["times"].items():
            print(
                f"{result['classes']:>5} classes, "
                f"{name:<11}{1000 * (taken + images):>14,.1f}{1000 * taken:>14,.1f}"
            )
        print(
            f"{'':<13}{'ratio':<13}"
            f"{(result['times']['plain'] + images) / (result['times']['packed'] + images):>14.1f}"
            f"{result['faster']:>14.1f}"
        )


def ensemble(backbone, classes, options):
    """The zero-shot classifier of an ensemble, as the library builds it and with all 77 positions
    of every sentence."""
    names, templates = NAMES[:classes], TEMPLATES["openai7"]

    def plain():
        features = []
        for template in templates:
            tokens = backbone.tokenizer([template.replace("{}", name) for name in names]).to(
                backbone.device
            )
            with backbone.running():
                features.append(
                    torch.cat(
                        [
                            backbone.model.encode_text(part, normalize=True).float()
                            for part in tokens.split(256)
                        ]
                    )
                )
        return normalize(torch.stack(features).mean(0))

    error = (plain() - zero_shot_classifier(backbone, names, "openai7")).abs().max().item()
    times = seconds(
        {"plain": plain, "packed": lambda: zero_shot_classifier(backbone, names, "openai7")},
        backbone.device,
        min(options.repeats, 1),
    )
    print(
        f"\nzero-shot classifier, {classes} classes, {len(templates)} templates: "
        f"{1000 * times['plain']:,.1f} ms plain, {1000 * times['packed']:,.1f} ms packed, "
        f"ratio {times['plain'] / times['packed']:.1f}, largest difference {error:.1e}"
    )


def mini_training(options):
    """One line per seed and precision: milliseconds per step, crops not counted, and what the
    trained prompts detect."""
    model, pictures, found = (
        load_backbone("mini", device=options.device),
        load_dataset("mini", "fewshot"),
        {},
    )
    every = lambda name: (
        lambda images: extract(
            model, images.subset(range(0, len(images), options.every)), False, True, progress=False
        )
    )(load_dataset(name))
    known, *strange = map(every, ("mini", *MINI_OOD))
    print(
        f"LoCoOp, mini, {options.shots} pictures per class, {options.epochs} "
        f"epochs\n{'seed':<6}{'towers':<8}{'ms per step':>12}{'loss':>9}{'GL-MCM AUROC, %':>18}"
    )
    for seed in range(1, options.seeds + 1):
        few, start = few_shot(pictures, options.shots, seed), None
        for precision in ("fp32", "bf16"):
            stamps, fit = (
                [],
                lambda **more: fit_locoop(
                    model,
                    few,
                    LoCoOpSettings(epochs=options.epochs, views=1, precision=precision),
                    seed=seed,
                    cache=False,
                    progress=False,
                    **more,
                ),
            )
            start = fit(stop_after=0).vectors.detach() if start is None else start
            context = fit(watch=lambda step: stamps.append(time.process_time()))
            (detector,) = prompt_detectors(model, context, "gl_mcm")
            inside, *outside = (detector.score(features).numpy() for features in (known, *strange))
            areas = 100 * statistics.mean(auroc(inside, scores) for scores in outside)
            took = statistics.median(b - a for a, b in zip(stamps, stamps[1:]))
            found[seed, precision] = {
                "seconds": took,
                "auroc": areas,
                "way": (context.vectors.detach() - start).flatten(),
            }
            print(
                f"{seed:<6}{precision:<8}{1000 * took:>12.1f}"
                f"{context.history[-1]['loss']:>9.3f}{areas:>18.2f}"
            )
    return found


def compare_precisions(found):
    """The two ways of every seed: how much faster, in how far the same direction, how far apart in
    AUROC."""
    pairs = [
        (found[seed, "fp32"], found[seed, "bf16"])
        for seed, precision in found
        if precision == "fp32"
    ]
    result = {
        "faster": statistics.mean(a["seconds"] / b["seconds"] for a, b in pairs),
        "cosine": min(torch.cosine_similarity(a["way"], b["way"], dim=0).item() for a, b in pairs),
        "difference": statistics.mean(b["auroc"] - a["auroc"] for a, b in pairs),
    }
    print(
        f"bf16 is {result['faster']:.1f} times as fast; the ways of the contexts have "
        f"cosines of {result['cosine']:.3f} or more; AUROC differs by "
        f"{result['difference']:+.2f} points on average"
    )
    return result


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="ViT-B-16-quickgelu", help="open_clip name; weights are random"
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--length", type=int, default=16, help="learned words")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default=None)
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="timed turns, after one to warm up; 0: the first turn counts",
    )
    parser.add_argument(
        "--at-once",
        type=int,
        default=None,
        help="most classes that the plain step encodes at once; all on a GPU, 100 on a CPU",
    )
    parser.add_argument("--images", action="store_true", help="whole steps too")
    parser.add_argument("--ensemble", action="store_true", help="zero-shot classifiers too")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--shots", type=int, default=4, help="--mini: pictures per class")
    parser.add_argument("--epochs", type=int, default=50, help="--mini: epochs")
    parser.add_argument("--seeds", type=int, default=3, help="--mini: trainings of each kind")
    parser.add_argument(
        "--every", type=int, default=1, help="--mini: read every so many test pictures"
    )
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    if options.mini:
        return compare_precisions(mini_training(options))
    warnings.filterwarnings("ignore", message=".*occur more than once")
    if options.small:
        backbone, options.classes, options.batch = (
            tiny_clip("vit_b", 0, options.device, options.precision),
            [24],
            8,
        )
    else:
        model, _, preprocess = open_clip.create_model_and_transforms(options.model)
        backbone = Backbone(
            model,
            preprocess,
            open_clip.get_tokenizer(options.model),
            options.model,
            "random",
            options.device,
            options.precision,
        )
    if options.at_once is None:
        options.at_once = 100 if backbone.device.type == "cpu" else max(options.classes)
    options.regions = backbone.grid[0] * backbone.grid[1]
    machine = (
        torch.cuda.get_device_name(backbone.device)
        if backbone.device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{backbone!r}\n{machine}, torch {torch.__version__}, Python {platform.python_version()}")
    text = [measure(backbone, classes, options) for classes in options.classes]
    if options.images:
        whole_steps(backbone, text, options)
    if options.ensemble:
        ensemble(backbone, options.classes[0], options)
    return text


if __name__ == "__main__":
    main()
