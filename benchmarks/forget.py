"""What do the sixteen class-forgetting tasks of one backbone cost? Ours against the published
procedure, same results, in one run.

    python benchmarks/forget.py                               ViT-B-16 with random weights; a few
                                                              images and steps, and what follows for
                                                              the whole protocol
    python benchmarks/forget.py --model RN50
    python benchmarks/forget.py --images 21305 --steps 2000   the whole protocol, on a GPU
    python benchmarks/forget.py --small                       a tiny CLIP, in seconds

Twelve single classes and four times three classes are forgotten, names and lists are the published
ones. The published procedure trains task by task, multiplies all rows with the whole matrix and
copies the merged matrix at every step, and afterwards encodes all test images of the four data sets
for every task. Ours trains all tasks as one batch whose steps need no large matrix, merges once,
and encodes every image once.

Both are given the hidden rows of all texts. What the authors' program does besides (loading the
model twice per task, encoding texts again, writing whole models) is left out, in its favour. Images
are noise: the cost of an image does not depend on what it shows. Time is processor time on a CPU (a
busy machine does not spoil it) and wall time on a GPU.
"""

import argparse
import json
import logging
import platform
import time
from dataclasses import replace

import open_clip
import torch

from oodnb.backbones import Backbone, tiny_clip
from oodnb.methods.forget import (
    PROTOCOL,
    ForgetTask,
    forget_problems,
    initial_factor,
    load_preserve,
    protocol_recipe,
    train_patches,
)
from oodnb.ground.places import shipped
from oodnb.forget.patch import class_hidden, class_vectors, merged
from oodnb.scores import normalize


def now(device):
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def random_backbone(options):
    torch.manual_seed(0)
    if options.small:
        return tiny_clip("vit_a", device=options.device)
    model, _, preprocess = open_clip.create_model_and_transforms(options.model)
    return Backbone(
        model,
        preprocess,
        open_clip.get_tokenizer(options.model),
        options.model,
        "random",
        options.device,
    )


def sixteen_tasks(options):
    """(ForgetTasks, class names by data set)."""
    sets = json.loads(
        shipped("reference", "forget", "zero_shot_reference.json").read_text("utf-8")
    )["datasets"]
    names, tasks = {name: sets[name]["class_names"] for name in PROTOCOL["dataset_order"]}, []
    for several in (False, True):
        for dataset, forgotten in PROTOCOL["forget_classes"].items():
            settings = replace(
                protocol_recipe(dataset, options.model, 3 if several else 1),
                steps=options.steps,
                max_trials=1,
                threshold=0.0,
            )
            tasks += [
                ForgetTask(chosen, names[dataset], load_preserve(dataset), settings)
                for chosen in ([forgotten] if several else forgotten)
            ]
    return tasks, names


def published_training(P, problem, A, settings):
    """One task, one trial: every step multiplies with the whole matrix and copies the merged
    one."""
    weight, X, X_r, U = (
        P.T.contiguous(),
        problem.forget_hidden,
        problem.preserve_hidden,
        problem.forget_target,
    )
    A, B, best = (
        A.clone().requires_grad_(),
        weight.new_zeros(len(weight), settings.rank).requires_grad_(),
        float("inf"),
    )
    Y_r = torch.nn.functional.linear(X_r, weight)
    optimizer = torch.optim.Adam([A, B], lr=settings.lr)
    for _ in range(settings.steps):
        y, y_r = (
            torch.nn.functional.linear(rows, weight) + settings.scale * (rows @ A.T) @ B.T
            for rows in (X, X_r)
        )
        loss = (
            problem.forget_weight * (U - y).norm()
            + problem.preserve_weight * (Y_r - y_r).norm()
            + problem.update_weight * (B @ A).norm()
        )
        if loss.item() < best:
            with torch.no_grad():
                kept = weight + settings.scale * B @ A
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept.T


def predictions(features, hidden, projections):
    """Class of every image of every data set, for one projection or a stack."""
    return [
        (normalize(rows) @ class_vectors(h, projections).mT).argmax(-1)
        for rows, h in zip(features, hidden)
    ]


def compare(options):
    backbone = random_backbone(options)
    device, (tasks, names) = backbone.device, sixteen_tasks(options)
    P, problems, _ = forget_problems(backbone, tasks)
    hidden = [
        class_hidden(backbone, names[dataset], PROTOCOL["eval_templates"][dataset])
        for dataset in names
    ]
    counts = [max(1, options.images // 4)] * 4
    side = backbone.image_size
    pixels = [
        torch.randn(n, 3, *side, generator=torch.Generator().manual_seed(i))
        for i, n in enumerate(counts)
    ]
    encode = lambda: [
        torch.cat([backbone.encode_images(part) for part in rows.split(128)]) for rows in pixels
    ]
    A = initial_factor(tasks[0].settings.rank, len(P), torch.Generator().manual_seed(0)).to(P)
    encode(), published_training(P, problems[0], A, tasks[0].settings)

    told = {"theirs": {"steps": 0.0, "images": 0.0}, "ours": {"steps": 0.0, "images": 0.0}}

    def timed(who, what, work):
        begun = now(device)
        result = work()
        told[who][what] += now(device) - begun
        return result

    theirs = []
    for task, problem in zip(tasks, problems):
        matrix = timed(
            "theirs",
            "steps",
            lambda problem=problem, task=task: published_training(P, problem, A, task.settings),
        )
        theirs.append(
            (
                matrix,
                timed(
                    "theirs", "images", lambda matrix=matrix: predictions(encode(), hidden, matrix)
                ),
            )
        )
    stack = timed(
        "ours",
        "steps",
        lambda: torch.stack(
            [
                merged(P.T, done.A, done.B, tasks[0].settings.scale).T
                for done in train_patches(P, problems, A[None], tasks[0].settings)
            ]
        ),
    )
    found = timed("ours", "images", lambda: predictions(encode(), hidden, stack))
    same = [
        bool((found[d][s] == theirs[s][1][d]).all()) for s in range(len(tasks)) for d in range(4)
    ]
    error = max(float((stack[s] - theirs[s][0]).abs().max()) for s in range(len(tasks)))
    return {
        "tasks": len(tasks),
        "images": sum(counts),
        "steps": options.steps,
        "same": sum(same) / len(same),
        "error": error,
        **told,
    }


def whole_protocol(result, who):
    """Seconds for one trial of 2,000 steps of every task and 21,305 images, from what was
    measured."""
    return (
        result[who]["steps"] * 2000 / result["steps"]
        + result[who]["images"] * 21305 / result["images"]
    )


def main(argv=None):
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument(
        "--images",
        type=int,
        default=4096 if gpu else 8,
        help="test images of all four data sets together",
    )
    parser.add_argument("--steps", type=int, default=200 if gpu else 25, help="of the training")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    result = compare(options)
    print(
        f"{'tiny CLIP' if options.small else options.model}, random weights, "
        f"{options.device} ({platform.machine()}, {torch.get_num_threads()} threads): "
        f"{result['tasks']} tasks, {result['steps']} steps, {result['images']} images"
    )
    for who, name in (("theirs", "published procedure"), ("ours", "ours")):
        print(
            f"   {name:20} training {result[who]['steps']:8.2f} s   images "
            f"{result[who]['images']:8.2f} s   whole protocol "
            f"{whole_protocol(result, who):10.0f} s (computed)"
        )
    ratios = [
        sum(result["theirs"].values()) / sum(result["ours"].values()),
        *(result["theirs"][what] / result["ours"][what] for what in ("steps", "images")),
        whole_protocol(result, "theirs") / whole_protocol(result, "ours"),
    ]
    print(
        f"   {ratios[0]:.1f} times faster as measured (training {ratios[1]:.1f}, images "
        f"{ratios[2]:.1f}); {ratios[3]:.1f} times for the whole protocol with one trial "
        "per task"
    )
    print(
        f"   same predictions in {100 * result['same']:.1f} % of the tasks and data sets; "
        f"largest difference of the matrices {result['error']:.1e}"
    )
    return {**result, "faster": ratios[0]}


if __name__ == "__main__":
    main()
