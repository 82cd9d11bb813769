"""Models of the CLIPN cases: weights follow from name, shape and seed (CASES.md, weight
regeneration rule)."""

import zlib

import numpy as np
import open_clip
import torch

from oodnb.backbones import Backbone


def rule(name: str, shape, seed: int) -> torch.Tensor:
    """The tensor called `name`, float32."""
    z = (
        np.random.Generator(np.random.PCG64((zlib.crc32(name.encode()) + int(seed)) % 2**32))
        .standard_normal(tuple(shape))
        .astype(np.float32)
    )
    owner = name.split(".")[-2] if "." in name else ""
    if name == "logit_scale":
        z = np.full(tuple(shape), np.log(100), np.float32)
    elif name.endswith("running_var"):
        z = 1 + np.float32(0.05) * np.abs(z)
    elif name.endswith(".weight") and owner.startswith(("ln_", "bn")):
        z = 1 + np.float32(0.05) * z
    else:
        z = z * np.float32(0.05)
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int):
    """Every tensor of a module by the rule, by its name in the state dict; the module itself."""
    for name, tensor in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(rule(name, tensor.shape, seed))
    return module


def ruled_backbone(config: dict, seed: int) -> Backbone:
    """The CLIP of a case (its config, in either of the two spellings), float32 on the CPU."""
    text, vision = (dict(config.get(part) or config[f"{part}_cfg"]) for part in ("text", "vision"))
    if "head_width" not in vision:
        vision["head_width"] = 32
    model = open_clip.CLIP(
        config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False)
    )
    return Backbone(
        fill(model, seed), lambda image: image, open_clip.SimpleTokenizer(), "case", device="cpu"
    )
