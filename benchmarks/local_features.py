"""What do local features cost? One shared pass against two passes, in the same run.

    python benchmarks/local_features.py                       ViT-B-16 and RN50 with random weights,
                                                              on the CPU or the GPU there is
    python benchmarks/local_features.py --models ViT-B-32-quickgelu --batch 2 --repeats 3

"global" gives one vector per image, "shared" gives both kinds from one pass, "two passes" asks for
global features and then runs the tower again for the local ones.
"""

import argparse
import logging
import platform
import statistics
import time

import open_clip
import torch

from oodnb.backbones import Backbone


def seconds(functions, device, repeats):
    """Median time of each function, in turns: processor time on a CPU (a busy machine does not
    spoil it), wall time on a GPU."""
    clock, times = (
        time.process_time if device.type == "cpu" else time.perf_counter,
        {name: [] for name in functions},
    )
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def two_passes(backbone, pixels):
    image_features = backbone.encode_images(pixels)
    _, local_features = backbone.encode_images(pixels, local=True)
    return image_features, local_features


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["ViT-B-16-quickgelu", "RN50-quickgelu"],
        help="open_clip names; weights are random",
    )
    parser.add_argument("--batch", type=int, default=4, help="images per pass")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns, after one to warm up")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    for name in options.models:
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        backbone = Backbone(
            model,
            preprocess,
            open_clip.get_tokenizer(name),
            name,
            "random",
            precision=options.precision,
        )
        pixels = torch.randn(
            options.batch, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0)
        ).to(backbone.device)
        shared, apart = backbone.encode_images(pixels, local=True), two_passes(backbone, pixels)
        difference = max((a - b).abs().max().item() for a, b in zip(shared, apart))
        functions = {
            "global": lambda: backbone.encode_images(pixels),
            "shared": lambda: backbone.encode_images(pixels, local=True),
            "two passes": lambda: two_passes(backbone, pixels),
        }
        times = seconds(functions, backbone.device, options.repeats)
        print(
            f"{name}, {backbone.device}, {options.precision}, batch {options.batch}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python "
            f"{platform.python_version()}"
        )
        print(
            "   ms per image"
            + (" and core: " if backbone.device.type == "cpu" else ": ")
            + ", ".join(
                f"{label} {1000 * taken / options.batch:.1f}" for label, taken in times.items()
            )
        )
        print(
            f"   shared / two passes {times['shared'] / times['two passes']:.2f}, shared "
            f"/ global {times['shared'] / times['global']:.2f}, largest difference "
            f"{difference:.1e}"
        )
        start = time.process_time()
        backbone.fingerprint
        print(
            f"   fingerprint of {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M "
            f"parameters: {time.process_time() - start:.2f} s of processor time, once"
        )


if __name__ == "__main__":
    main()
