"""What does TOE's training cost? From features that were encoded once, against encoding pictures
and texts at every step, in the same run and with the same result.

    python benchmarks/toe.py                                 ViT-B/16's size with random weights on
                                                             a GPU, the small embedded CLIP on a CPU
    python benchmarks/toe.py --model ViT-B-32 --steps 2

The released program encodes both sides at every step, and lets gradients flow back through both
frozen towers. Both variants are timed: as released, and without those gradients. Then several
seeds, and several lists of different lengths, side by side against one after another.
"""

import argparse
import logging
import platform
import time
import warnings

import numpy as np
import open_clip
import torch

from oodnb.backbones import load_backbone
from oodnb.features import Features
from oodnb.toe.classifier_heads import (
    TextNoise,
    TOESettings,
    head_logits,
    make_head,
    train_head,
)
from oodnb.losses import outlier_exposure_loss
from oodnb.methods.toe import fit_toe_runs

BATCH = 32


def now(device):
    """Processor time on a CPU (a busy machine does not spoil it), wall time on a GPU."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device, work):
    begun = now(device)
    result = work()
    return result, now(device) - begun


def encoding_each_step(model, pixels, tokens, labels, eps, start, flowing):
    """Every step encodes its 32 pictures and 32 texts; `flowing`: with gradients for the towers, as
    released."""
    head = [tuple(part.clone().requires_grad_() for part in layer) for layer in start]
    optimizer, noise = (
        torch.optim.Adam([part for layer in head for part in layer], lr=1e-3),
        TextNoise(),
    )
    for step in range(len(eps)):
        at = slice(step * BATCH, (step + 1) * BATCH)
        with torch.set_grad_enabled(flowing):
            images, texts = (
                model.encode_image(pixels[at]).float(),
                model.encode_text(tokens[at]).float(),
            )
        images, texts = noise(images, texts, eps[step])
        loss = outlier_exposure_loss(
            head_logits(head, images), labels[at], head_logits(head, texts)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return head


def encode(model, pixels, tokens):
    with torch.no_grad():
        return [
            torch.cat([tower(part).float() for part in rows.split(4 * BATCH)])
            for tower, rows in ((model.encode_image, pixels), (model.encode_text, tokens))
        ]


def main():
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="ViT-B-16" if gpu else "mini",
        help="open_clip name (random weights), or mini",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=907 if gpu else 10,
        help="of one epoch; 907 with descriptions in the release",
    )
    parser.add_argument(
        "--epochs", type=int, default=100, help="of the whole training, for the ratio of the whole"
    )
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--lists",
        type=int,
        default=7,
        help="of outlier texts, as in toe_imagenet's table and more in toe_criteria's",
    )
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    device, draw = torch.device(options.device), torch.Generator().manual_seed(0)
    own = load_backbone("mini", device=device) if options.model == "mini" else None
    model = own.model if own else open_clip.create_model(options.model, device=device).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    size, count = model.visual.image_size, options.steps * BATCH
    pixels = torch.randn(
        count, 3, *(size if isinstance(size, tuple) else (size, size)), generator=draw
    ).to(device)
    tokens = (own.tokenizer if own else open_clip.get_tokenizer(options.model))(
        [f"This is a photo of a thing number {i}" for i in range(count)]
    ).to(device)
    labels, width = (
        torch.randint(options.classes, (count,), generator=draw).to(device),
        (own.embed_dim if own else model.visual.output_dim),
    )
    start = [
        tuple(part.to(device) for part in layer)
        for layer in make_head("linear", width, options.classes, generator=draw)
    ]
    eps = torch.randn(options.steps, BATCH, width, generator=draw).to(device)
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python "
        f"{platform.python_version()}; {options.model}, {options.steps} steps of {BATCH} "
        f"pictures and {BATCH} texts, {options.classes} classes"
    )

    order = lambda epoch: (np.arange(count), np.arange(count))
    fit = lambda images, texts, heads, epochs=1: (
        train_head(
            images,
            labels,
            texts,
            heads,
            order,
            TOESettings(epochs=epochs),
            draw=lambda epoch, step, size: (eps[step], None),
            progress=False,
        ).heads
    )
    encoding_each_step(model, pixels[:BATCH], tokens[:BATCH], labels[:BATCH], eps[:1], start, True)
    released, flowing = timed(
        device, lambda: encoding_each_step(model, pixels, tokens, labels, eps, start, True)
    )
    plain, still = timed(
        device, lambda: encoding_each_step(model, pixels, tokens, labels, eps, start, False)
    )
    (images, texts), once = timed(device, lambda: encode(model, pixels, tokens))
    fit(images, texts, [start])
    many = max(1, 60 // options.steps)
    _, several = timed(device, lambda: fit(images, texts, [start], many))
    (ours,), epoch = timed(device, lambda: fit(images, texts, [start]))
    epoch = min(epoch, several / many)
    far = max(
        (a - b).abs().max().item()
        for layer, other in zip(plain, ours)
        for a, b in zip(layer, other)
    )
    for name, seconds in (
        ("encoding at every step, gradients through the towers (released)", flowing),
        ("encoding at every step, no gradients for the towers", still),
        ("from features, one epoch", epoch),
        ("encoding once", once),
    ):
        print(f"   {name}: {seconds:.3f} s")
    print(
        f"   one epoch: {flowing / epoch:.0f} times faster than released, "
        f"{still / epoch:.0f} times than without gradients; {options.epochs} epochs with "
        f"the encoding: {options.epochs * flowing / (once + options.epochs * epoch):.0f} "
        f"and {options.epochs * still / (once + options.epochs * epoch):.0f} times"
    )
    apart = max(
        (a - b).abs().max().item()
        for layer, other in zip(released, ours)
        for a, b in zip(layer, other)
    )
    print(
        f"   largest difference of the heads after the epoch: {far:.1e} (released against "
        f"ours: {apart:.1e})"
    )

    heads = [
        [
            tuple(part.to(device) for part in layer)
            for layer in make_head(
                "linear", width, options.classes, generator=torch.Generator().manual_seed(seed)
            )
        ]
        for seed in range(options.seeds)
    ]
    fit(images, texts, heads)
    together, side = timed(device, lambda: fit(images, texts, heads, many))
    alone, row = timed(device, lambda: [fit(images, texts, [head], many)[0] for head in heads])
    far = max(
        (a - b).abs().max().item()
        for one, other in zip(together, alone)
        for left, right in zip(one, other)
        for a, b in zip(left, right)
    )
    print(
        f"{options.seeds} seeds: side by side {1000 * side / many / options.steps:.2f} ms "
        f"per step, one after another {1000 * row / many / options.steps:.2f} ms: "
        f"{row / side:.1f} times faster, largest difference {far:.1e}"
    )

    known = Features(
        images.cpu(), labels.cpu().numpy(), [str(i) for i in range(count)], "noise", "train", "none"
    )
    warnings.filterwarnings("ignore", message=".*have no training picture")
    names, lists = (
        [f"class {i}" for i in range(options.classes)],
        {
            f"list {i}": texts[: max(1, count * i // options.lists)]
            for i in range(1, options.lists + 1)
        },
    )
    train = lambda outliers: fit_toe_runs(
        known,
        names,
        outliers,
        TOESettings(repeat=True, epochs=many),
        seeds=range(3),
        progress=False,
    )
    together, side = timed(torch.device("cpu"), lambda: train(lists))
    alone, row = timed(
        torch.device("cpu"),
        lambda: [d for name, rows in lists.items() for d in train({name: rows})],
    )
    far = max(
        (a - b).abs().max().item()
        for one, other in zip(together, alone)
        for left, right in zip(one.head, other.head)
        for a, b in zip(left, right)
    )
    print(
        f"{options.lists} lists of different lengths, 3 seeds each: side by side "
        f"{side:.2f} s, one after another {row:.2f} s: {row / side:.1f} times faster, "
        f"largest difference {far:.1e} ({many} epochs, on the CPU)"
    )


if __name__ == "__main__":
    main()
