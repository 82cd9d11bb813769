"""How many operations does a step of LoCoOp hand to the device, and how long does the step take?

    python benchmarks/operations.py           ViT-B-16 with random weights, 1000 names
    python benchmarks/operations.py --names 50
    python benchmarks/operations.py --small   the embedded world's own tower

On a GPU a step of learned prompts is shorter than the time it takes to launch its kernels, so their
number decides. Operations are counted where PyTorch dispatches them, on any device. Views (a
reshape, a slice) launch nothing and are counted apart, and so is `embedding_dense_backward`, which
sorts on a GPU.
"""

import argparse
import collections
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import harness
import plain_user
from oodnb.backbones import load_backbone
from oodnb.methods.coop import _batch_logits
from oodnb.methods.locoop import watched_terms
from oodnb.prompts import PromptContext


class Count(TorchDispatchMode):
    "Counts what is dispatched inside: all, those that make a tensor, and each by name."

    def __init__(self):
        super().__init__()
        self.all, self.kernels, self.names = 0, 0, collections.Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.all += 1
        self.kernels += not operation.is_view
        self.names[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


def phases(context, batch, optimizer, top_k):
    "{phase: what it counted} of one step."
    counted, held = {}, {}

    def forward():
        held["logits"] = _batch_logits(context, batch, 100.0)

    def loss():
        held["loss"] = watched_terms(*held["logits"], top_k=top_k)["loss"]

    steps = {
        "text forward": forward,
        "loss": loss,
        "backward": lambda: held["loss"].backward(),
        "update": optimizer.step,
    }
    for name, step in steps.items():
        with Count() as counted[name]:
            step()
    optimizer.zero_grad()
    return counted


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    harness.options_of(parser).add_argument("--names", type=int, default=1000)
    options = parser.parse_args(arguments)
    name = "mini" if options.small else "ViT-B-16"
    backbone = load_backbone("mini") if options.small else plain_user.random_weights(name)
    names = [f"{word} {i}" for i in range(options.names // 10) for word in plain_user.NAMES]
    names = names[:24] if options.small else names
    context = PromptContext(backbone, names, generator=torch.Generator().manual_seed(0))
    width, regions = backbone.embed_dim, backbone.grid[0] * backbone.grid[1]
    batch = torch.randn(8, width), torch.randn(8, regions, width), torch.arange(8) % len(names)
    optimizer = torch.optim.SGD([context.vectors], lr=0.002, momentum=0.9)
    phases(context, batch, optimizer, 2)
    counted, begun = phases(context, batch, optimizer, 2), time.process_time()
    phases(context, batch, optimizer, 2)
    values = [harness.value(f"{k}, operations", c.all, "") for k, c in counted.items()]
    sorts = sum(c.names["aten.embedding_dense_backward.default"] for c in counted.values())
    values += [
        harness.value("operations", sum(c.all for c in counted.values()), ""),
        harness.value("operations that are no views", sum(c.kernels for c in counted.values()), ""),
        harness.value("of them embedding_dense_backward", sorts, ""),
        harness.value("step", time.process_time() - begun, "s", "processor time, counted too"),
    ]
    told = f"operations of a LoCoOp step: {name}, {len(names)} names"
    return harness.report(told, [], values, "cpu", options.json)


if __name__ == "__main__":
    main()
