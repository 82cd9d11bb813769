"""What the tests of class forgetting share: random rows, a few animals, and tasks."""

import torch

from oodnb.methods.forget import ForgetTask

ANIMALS = ["cat", "dog", "fox", "owl"]


def draw(*shape, seed=0, dtype=torch.float32):
    """Normal numbers; in float32 those of float64, rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def cat_task(settings, preserve=("wolf",)):
    return ForgetTask("cat", ANIMALS, preserve, settings)


def task_of(case, settings):
    """The task of a reference case."""
    names = (case[key].tolist() for key in ("forget_names", "class_names", "raw_preserve_list"))
    return ForgetTask(*names, settings)
