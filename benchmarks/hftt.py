"""What does HFTT's training cost? Cached against straightforward, in the same run and with the same
result.

    python benchmarks/hftt.py                                ImageNet's size (1000 classes, 79,840
                                                             texts) on a GPU, an eighth of it on a
                                                             CPU
    python benchmarks/hftt.py --texts 79840 --steps 5

A step of the straightforward training multiplies all texts of the task with all K + N embeddings,
forward and backward, as the paper writes the loss; the cached one only with the N that are trained.

Words are encoded over 77 tokens in the straightforward way, and with the shared prefix and without
padding in ours. The towers have random weights.
"""

import argparse
import logging
import platform
import time

import open_clip
import torch
import torch.nn.functional as F

from oodnb.backbones import Backbone
from oodnb.methods.hftt import HFTTSettings, train_outliers
from oodnb.pipeline.words import load_words, word_texts


def now(device):
    """Processor time on a CPU (a busy machine does not spoil it), wall time on a GPU."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def straightforward(task, texts, words, start, batch_size, temperature=0.01):
    """The loss as the paper writes it: one softmax over all K + N columns, for all texts, at every
    step."""
    outliers = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([outliers], lr=1.0, momentum=0.9)
    for batch in words.split(batch_size):
        optimizer.zero_grad()
        columns = torch.cat([task, F.normalize(outliers, dim=1)])
        task_p, word_p = (
            (rows @ columns.T / temperature).softmax(1)[:, len(task) :].sum(1)
            for rows in (texts, batch)
        )
        weights = (1 - word_p.detach()) / (1 - word_p.detach()).sum()
        loss = (-(1 - task_p).log().mean() - (weights * word_p.log()).sum()) / 2
        loss.backward()
        optimizer.step()
    return outliers.detach()


def steps(device, options):
    draw = torch.Generator().manual_seed(0)
    unit = lambda n, shift=0.0: F.normalize(
        torch.randn(n, options.width, generator=draw) + shift, dim=1
    ).to(device)
    task, texts, words = (
        unit(options.classes, 1.0),
        unit(options.texts, 1.0),
        unit(options.batch * options.steps, 1.0),
    )
    start = torch.randn(options.outliers, options.width, generator=draw).to(device)
    cached = lambda steps: train_outliers(
        task,
        texts,
        words[: steps * options.batch],
        [start],
        lambda epoch: torch.arange(steps * options.batch),
        HFTTSettings(batch_size=options.batch),
        progress=False,
    ).outliers[0]
    straightforward(task, texts, words[: options.batch], start, options.batch), cached(1)
    times = []
    for train in (
        lambda n: straightforward(task, texts, words[: n * options.batch], start, options.batch),
        cached,
    ):
        begun = now(device)
        result = train(options.steps)
        times.append((now(device) - begun, F.normalize(result, dim=1)))
    begun = now(device)
    cached(1)
    once = now(device) - begun
    begun = now(device)
    cached(options.steps)
    (plain, first), (ours, second) = times
    per_step = (min(ours, now(device) - begun) - once) / (options.steps - 1)
    print(
        f"training: {options.texts} task texts, {options.classes} classes, "
        f"{options.outliers} outliers, batch {options.batch}, width {options.width}"
    )
    print(
        f"   straightforward {1000 * plain / options.steps:.1f} ms per step, cached "
        f"{1000 * per_step:.1f} ms per step and {once:.2f} s once (with its first step): "
        f"{plain / options.steps / per_step:.0f} times faster per step"
    )
    print(
        f"   largest difference of the trained directions after {options.steps} steps: "
        f"{(first - second).abs().max():.1e}"
    )


def encoding(device, options):
    model, _, preprocess = open_clip.create_model_and_transforms(options.model)
    backbone = Backbone(
        model, preprocess, open_clip.get_tokenizer(options.model), options.model, "random", device
    )
    chosen = load_words().words[:: max(1, 30_000 // options.words)][: options.words]
    texts = word_texts(chosen)
    times = []
    with torch.no_grad():
        for encode in (
            lambda some: torch.cat(
                [
                    model.encode_text(backbone.tokenizer(some[i : i + 256]).to(device))
                    for i in range(0, len(some), 256)
                ]
            ),
            lambda some: backbone.encode_texts(some, batch_size=1024),
        ):
            encode(texts[:64])
            begun = now(device)
            features = encode(texts)
            times.append((now(device) - begun, features))
    (plain, first), (ours, second) = times
    print(f"words: {len(texts)} through {options.model}, random weights")
    print(
        f"   77 tokens {1000 * plain / len(texts):.2f} ms per word, shared prefix "
        f"{1000 * ours / len(texts):.2f} ms per word: {plain / ours:.1f} times faster, "
        f"largest difference {(first - second).abs().max():.1e}"
    )


def main():
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--texts", type=int, default=79_840 if gpu else 9_980, help="texts of the task"
    )
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--outliers", type=int, default=10)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256, help="words per step")
    parser.add_argument("--steps", type=int, default=40 if gpu else 10)
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="open_clip name")
    parser.add_argument("--words", type=int, default=20_000 if gpu else 256, help="words to encode")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    device = torch.device(options.device)
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )
    steps(device, options)
    encoding(device, options)


if __name__ == "__main__":
    main()
