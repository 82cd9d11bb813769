"""What does a step of CLIPN's pre-training cost? Texts in one line and own columns against 77
tokens and all columns, same numbers, in one run.

    python benchmarks/clipn.py                        ViT-B-16's text towers with random weights; 32
                                                      captions of each of 4 ranks, one of which is
                                                      played
    python benchmarks/clipn.py --batch 512            the published size, on a GPU
    python benchmarks/clipn.py --precision bf16       or fp16
    python benchmarks/clipn.py --small                a tiny tower, in seconds

A step is what a rank does once the image features are there: frozen yes tower, no branch, loss,
backward, AdamW. The plain one reads all 77 positions, and computes both similarity matrices of the
whole batch as softmax and logarithm. Captions are as long as those of CC3M (ten words in the mean).
Time is processor time on a CPU (a busy machine does not spoil it) and wall time on a GPU, the
median of a few turns. "kept" is what the graphs hold for the way back, weights not counted; "peak"
what the step adds to the process (resident memory on Linux) or to the GPU.
"""

import argparse
import logging
import platform

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from prompts import kept_by, megabytes, peak_of, seconds

from oodnb.backbones import PRECISIONS, Backbone, tiny_clip
from oodnb.clipn.no_branch import NoBranch
from oodnb.models.shared_prefix import encode_tokens
from oodnb.clipn.pretrain import clipn_terms, parameter_groups


def captions(count, chance):
    """Made of the words of ImageNet's names, as many as captions of CC3M have."""
    words = " ".join(open_clip.IMAGENET_CLASSNAMES).split()
    return [
        " ".join(chance.choice(words, size=n))
        for n in np.clip(chance.lognormal(2.2, 0.4, count).round(), 3, 45).astype(int)
    ]


class Step:
    """One rank's part of a step; the texts of the other ranks are given."""

    def __init__(self, backbone, options):
        self.backbone, self.branch, chance = backbone, NoBranch(backbone), np.random.default_rng(0)
        self.half, self.count, total = (
            PRECISIONS[options.precision],
            options.batch,
            options.batch * options.ranks,
        )
        self.tokens = backbone.tokenizer(captions(options.batch, chance))
        self.index = torch.from_numpy(chance.integers(17, size=options.batch))
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.branch.parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=draw).to(p.device))
        unit = lambda n: F.normalize(torch.randn(n, backbone.embed_dim, generator=draw), dim=1).to(
            backbone.device
        )
        self.images, self.other_yes, self.other_no = (
            unit(total),
            unit(total - options.batch),
            unit(total - options.batch),
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(self.branch), 3e-4, (0.9, 0.98), 1e-6)
        self.start = {
            name: tensor.detach().clone() for name, tensor in self.branch.state_dict().items()
        }

    def texts(self, plain):
        with self.backbone.running():
            yes = encode_tokens(self.backbone.model, self.tokens, share=not plain)
        with torch.autocast(self.backbone.device.type, self.half, enabled=self.half is not None):
            no = self.branch(self.tokens, self.index, trim=not plain)
        return F.normalize(yes, dim=1), F.normalize(no, dim=1)

    def loss(self, plain):
        """The whole loss (plain) or the rank's share, and what is minimised: both have the same
        gradient for the rank's own texts."""
        yes, no = self.texts(plain)
        if not plain:
            return clipn_terms(self.images, yes, no, self.backbone.logit_scale)["loss"]
        t, u = torch.cat([yes, self.other_yes]), torch.cat([no, self.other_no])
        p = torch.stack(
            [self.backbone.logit_scale * self.images @ rows.T for rows in (t, u)]
        ).softmax(0)
        own = torch.eye(len(t), dtype=torch.bool, device=t.device)
        return (
            -p[0][own].log().mean()
            - p[1][~own].log().mean()
            + (2 - (2 - 2 * (t * u).sum(1) + 1e-4).sqrt()).mean()
        ) / 2

    def gradient(self, plain):
        self.optimizer.zero_grad()
        loss = self.loss(plain)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in self.branch.parameters()]).cpu()

    def __call__(self, plain):
        self.optimizer.zero_grad()
        self.loss(plain).backward()
        self.optimizer.step()

    def after(self, plain, steps=1):
        """Parameters after some steps from the start."""
        self.branch.load_state_dict(self.start)
        self.optimizer.state.clear()
        for _ in range(steps):
            self(plain)
        return torch.cat([p.detach().flatten() for p in self.branch.parameters()]).cpu()

    def others(self):
        """The part of the whole loss that belongs to the texts of the other ranks."""
        return (
            clipn_terms(
                self.images,
                self.other_yes,
                self.other_no,
                self.backbone.logit_scale,
                first=self.count,
            )["loss"].item()
            if len(self.other_yes)
            else 0.0
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-16", help="open_clip name; weights are random")
    parser.add_argument("--batch", type=int, default=32, help="captions of the rank")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--device", default=None)
    parser.add_argument("--repeats", type=int, default=2, help="timed turns, after one to warm up")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    if options.small:
        backbone, options.batch = tiny_clip("vit_a", 0, options.device, options.precision), 8
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
    step = Step(backbone, options)
    machine = (
        torch.cuda.get_device_name(backbone.device)
        if backbone.device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{backbone!r}\n{machine}, torch {torch.__version__}, Python {platform.python_version()}")
    lengths = step.tokens.argmax(1) + 1
    print(
        f"{options.batch} captions of each of {options.ranks} ranks, "
        f"{lengths.float().mean():.1f} tokens in the mean, {lengths.max()} in the "
        f"longest, of {step.tokens.shape[1]}"
    )
    (whole, first), (share, second) = step.gradient(True), step.gradient(False)
    error = ((first - second).abs().max() / first.abs().max()).item()
    print(
        f"loss: {whole:.6f} plain, {share + step.others():.6f} own columns and those of "
        f"the other ranks; gradients of {len(first):,} parameters differ by {error:.1e} "
        "of the largest"
    )
    moved = (step.after(True) - step.after(False)).abs()
    print(
        "after a step of AdamW (learning rate 3e-4) parameters differ by "
        f"{moved.max():.1e} at most, {moved.mean():.1e} in the mean"
    )
    times = seconds(
        {"plain": lambda: step(True), "ours": lambda: step(False)}, backbone.device, options.repeats
    )
    kept = {
        name: kept_by(lambda: step.loss(plain), step.branch)
        for name, plain in (("plain", True), ("ours", False))
    }
    peak = {
        name: peak_of(lambda: step(plain), backbone.device)[1]
        for name, plain in (("ours", False), ("plain", True))
    }
    print(f"{'step':<8}{'ms':>12}{'kept MB':>14}{'peak MB':>14}")
    for name in times:
        print(
            f"{name:<8}{1000 * times[name]:>12,.1f}{megabytes(kept[name], False):>14}"
            f"{megabytes(peak[name], False):>14}"
        )
    result = {
        "error": error,
        "loss": abs(whole - share - step.others()),
        "faster": times["plain"] / times["ours"],
        "kept": kept["plain"] / kept["ours"],
    }
    print(
        f"{'ratio':<8}{result['faster']:>12.1f}{result['kept']:>14.1f}"
        f"{peak['plain'] / peak['ours'] if peak['ours'] else float('nan'):>14.1f}"
    )
    return result


if __name__ == "__main__":
    main()
