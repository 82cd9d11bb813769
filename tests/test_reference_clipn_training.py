"""CLIPN's training against numbers of the published implementation (data/reference/clipn/CASES.md),
and one process against two."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import clipn_job
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipn_job import begun, learn, little_pairs
from reference import cases, close
from ruled import rule, ruled_backbone
from safetensors import safe_open

from oodnb.backbones import tiny_clip
from oodnb.captions import CaptionSettings, caption_batches, epoch_size
from oodnb.clipn.no_branch import NoBranch
from oodnb.clipn.pretrain import (
    CLIPNSettings,
    clipn_terms,
    parameter_groups,
    pretrain_no,
    pretrain_on_captions,
    prompt_draws,
    step_rates,
)

TERMS = ("match", "mismatch", "opposite", "loss")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))


def tensor(array, dtype=torch.float64):
    return torch.from_numpy(np.asarray(array)).to(dtype)


@pytest.mark.parametrize("case", cases("clipn", "*multirank*.npz"))
def test_ranks(case):
    ranks, count, _ = case["image"].shape
    images = tensor(case["image"]).flatten(0, 1).requires_grad_()
    scale = tensor(case["scale"]).requires_grad_()
    texts, nos = (
        [rows.clone().requires_grad_() for rows in tensor(case[name])]
        for name in ("text", "text_no")
    )
    shares = [
        clipn_terms(images, yes, no, scale, rank * count)
        for rank, (yes, no) in enumerate(zip(texts, nos))
    ]
    for rank, share in enumerate(shares):
        close(
            torch.autograd.grad(share["loss"], nos[rank], retain_graph=True)[0],
            case["local_grad_text_no"][rank],
            rtol=1e-8,
            atol=1e-14,
        )
        close(
            torch.autograd.grad(share["loss"], texts[rank], retain_graph=True)[0],
            case["local_grad_text"][rank],
            rtol=1e-8,
            atol=1e-14,
        )
    total = {name: sum(share[name] for share in shares) for name in TERMS}
    for losses in (case["local_losses"], case["gwg_losses"]):
        for seen in losses:
            close([total[name].item() for name in TERMS], seen, rtol=1e-8)
    close(total["loss"].item(), case["full_total"], rtol=1e-8)
    close(
        torch.autograd.grad(total["loss"], images, retain_graph=True)[0].view(case["image"].shape),
        case["local_grad_image"],
        rtol=1e-8,
        atol=1e-14,
    )
    slope = torch.stack(torch.autograd.grad(total["loss"], nos))
    close(slope, case["full_grad_text_no"], rtol=1e-8, atol=1e-14)
    close(slope * ranks, case["gwg_grad_text_no"], rtol=1e-8, atol=1e-14)
    whole = clipn_terms(images, torch.cat(texts), torch.cat(nos), scale)
    close([whole[name].item() for name in TERMS], case["local_losses"][0], rtol=1e-8)


@pytest.mark.parametrize("case", cases("clipn", "*schedule*.npz"))
def test_schedule_and_size(case):
    for name in [name.removesuffix("_args") for name in case if name.endswith("_args")]:
        lr, warmup, steps = case[f"{name}_args"]
        rates = step_rates(int(steps), lr, int(warmup))
        close(rates if len(case[name]) == len(rates) else rates[::353], case[name], rtol=1e-12)
    for *given, floor, batches, samples in case["sizing"].tolist():
        assert epoch_size(*given, bool(floor)) == (batches, samples)


def start_of(case):
    """(NoBranch in float64, meta) of a training case."""
    meta = json.loads(str(case["meta"]))
    branch = NoBranch(ruled_backbone(meta["model"], meta["rule_seed"]))
    if meta["initial_prompt_no"] != "zeros":  # "rule ... times a factor"
        branch.prompt_no.data = rule(
            "prompt_no", branch.prompt_no.shape, meta["rule_seed"]
        ) * float(re.findall(r"[\d.]*\d", str(meta["initial_prompt_no"]))[-1])
    return branch.double(), meta


@pytest.mark.parametrize("case", cases("clipn", "*train_*.npz"))
def test_training(case):
    branch, meta = start_of(case)
    initial = dict(branch.named_parameters())
    names = {id(p): name for name, p in initial.items()}
    assert [
        sorted(names[id(p)] for p in group["params"]) for group in parameter_groups(branch)
    ] == [sorted(group) for group in meta["groups"]]
    ranks, steps = meta["world"], len(case["losses"])
    for rank in range(ranks):
        draws = prompt_draws(
            16, ranks * meta["per_rank_batch"], meta["seed"], rank, ranks, released=True
        )()
        for step in range(steps):
            close(next(draws), case["idx"][step, rank])

    def batches(start):
        for step in range(start, steps):
            images, texts = (
                tensor(case[name][step]).flatten(0, 1)
                for name in ("image_features", "text_features")
            )
            yield (
                images,
                texts,
                torch.from_numpy(case["tokens"][step].astype(np.int64)).flatten(0, 1),
                torch.from_numpy(case["idx"][step]).flatten(),
            )

    settings = CLIPNSettings(
        logit_scale=float(case["scale_used"][0]),
        lr=meta["lr"],
        warmup=meta["warmup"],
        betas=tuple(meta["betas"]),
        eps=meta["eps"],
        weight_decay=meta["weight_decay"][1],
        clip=meta["grad_clip"],
        grad_scale=1 if meta["gather_with_grad"] or not meta["ddp"] else 1 / ranks,
    )
    history = pretrain_no(branch, batches, steps, settings, progress=False)
    close([[row[name] for name in TERMS[:3]] for row in history], case["losses"], rtol=1e-7)
    close([row["loss"] for row in history], case["total"], rtol=1e-7)
    close([row["lr"] for row in history], case["lr"], rtol=1e-12)
    close([row["scale"] for row in history], case["scale_used"], rtol=1e-12)
    for name, value in case.items():
        if not name.startswith("final/"):
            continue
        name, rows = name.removeprefix("final/"), slice(None)
        if name.endswith("[rows]"):
            name, rows = (
                name.removesuffix("[rows]"),
                torch.from_numpy(case["token_rows"].astype(np.int64)),
            )
        close(initial[name].detach()[rows], value, atol=1e-7)
    last = {
        name: tensor(case[name][-1]).flatten(0, 1)
        for name in ("image_features", "text_features", "text_features_no")
    }
    share = clipn_terms(*(F.normalize(rows, dim=1) for rows in last.values()), history[-1]["scale"])
    close(share["loss"].item(), case["total"][-1], rtol=1e-7)


def launch(out, processes, folder="", **options):
    """The same training in processes that torchrun starts."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        clipn_job.__file__,
        str(out),
        str(folder),
        json.dumps(options),
    ]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = []
    for rank in range(processes):
        with safe_open(out / f"{rank}-of-{processes}.safetensors", "pt") as file:
            results.append(
                (
                    {name: file.get_tensor(name) for name in file.keys()},
                    json.loads(file.metadata()["history"]),
                )
            )
    return results


def same(branch, history, results, atol=1e-9):
    for tensors, told in results:
        for name, p in branch.named_parameters():
            close(p.detach(), tensors[name], atol=atol)
        for row, other in zip(history, told, strict=True):
            close(
                [row[name] for name in (*TERMS, "lr", "scale")],
                [other[name] for name in (*TERMS, "lr", "scale")],
                rtol=1e-9,
            )


@pytest.fixture(scope="module")
def straight():
    return learn()


def test_two_processes_are_one(tmp_path, straight):
    same(*straight, launch(tmp_path, 2))


def test_two_processes_resume_what_one_began(tmp_path, straight):
    learn(tmp_path, stop_after=3)
    same(*straight, launch(tmp_path, 2, tmp_path))


@pytest.mark.parametrize("step", range(1, 6))
def test_stopping_after_any_step_changes_nothing(tmp_path, straight, step):
    assert len(learn(tmp_path, stop_after=step)[1]) == step
    branch, history = learn(tmp_path)
    assert history == straight[1]
    assert all(torch.equal(a, b) for a, b in zip(branch.parameters(), straight[0].parameters()))


def test_unequal_ranks_are_refused(tmp_path):
    script = tmp_path / "unequal.py"
    script.write_text(
        "import torch\n"
        "from oodnb.pipeline.processes import gathered, process_group, rank_and_ranks\n"
        "with process_group('cpu'):\n"
        "    try: gathered(torch.zeros(2 + rank_and_ranks()[0], 3))\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.count("The ranks have 2, 3 pairs") == 2, done.stderr[-2000:]


def test_damaged_pictures_are_named_and_replaced(tmp_path):
    backbone, settings = (
        tiny_clip("vit_a", device="cpu"),
        replace(clipn_job.SETTINGS, views=None, epochs=1),
    )
    pairs, run = little_pairs(broken=(5,)), {"folder": tmp_path, **clipn_job.RUN}
    with pytest.warns(
        UserWarning, match=r"1 of 22 pairs could not be read.*5\.png \(OSError: disk error\)"
    ):
        history = pretrain_on_captions(backbone, NoBranch(backbone, 3), pairs, settings, **run)
    assert sum(row["replaced"] for row in history) == 1 and sum(row["cut"] for row in history) == 0
    assert json.loads((tmp_path / "skipped-0.json").read_text()) == {"5.png": "OSError: disk error"}
    taken = [
        row
        for step, batch in zip(
            range(3), caption_batches(backbone, pairs, CaptionSettings(8), seed=3)()
        )
        for row in batch.rows
    ]
    assert 5 not in taken and len(taken) == 24


def flat(branch):
    return torch.cat([p.detach().double().flatten() for p in branch.parameters()])


@pytest.mark.parametrize(
    "precision, more",
    [("bf16", {"kind": "cosine"}), ("fp16", {"weights": (1, 1, 0.5), "grad_scale": 2**-6})],
)
def test_half_precision_moves_the_branch_as_fp32_does(tmp_path, precision, more):
    # A branch that begins as the yes tower is torn away from it by rounding alone, whatever the
    # precision; so this one begins apart from it. The small gradient keeps fp16's scaler from
    # leaving out the first steps.
    options = {"views": 1, "dtype": torch.float32, "apart": 0.5} | more
    half = options | {"precision": precision}
    learn(tmp_path, stop_after=2, **half)
    (branch, history), (exact, plain) = learn(tmp_path, **half), learn(**options)
    start = flat(begun(torch.float32, 0.5)[1])
    moved, wanted = flat(branch) - start, flat(exact) - start
    apart = float((moved - wanted).norm() / wanted.norm())
    assert 1e-4 < apart < {"bf16": 0.04, "fp16": 0.006}[precision], apart
    close([row["loss"] for row in history], [row["loss"] for row in plain], atol=0.06)
    assert len(history) == 6
    assert [row.get("amp_scale") for row in history] == [
        2.0**16 if precision == "fp16" else None
    ] * 6
