"""HFTT against numbers of the published implementation (data/reference/hftt/CASES.md says how they
were made)."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from oodnb.backbones import tiny_clip
from oodnb.losses import focal_mean, textual_detection_loss, textual_detection_terms
from oodnb.methods.hftt import (
    HFTTDetector,
    HFTTSettings,
    oracle_epoch,
    task_features,
    train_outliers,
)
from oodnb.metrics import auroc, detection_metrics, fpr_at_tpr
from oodnb.pipeline.rows import average_seeds
from oodnb.scores import task_log_odds
from oodnb.pipeline.words import split_lines, word_texts
from reference import cases, close


def better(case, name):
    """The log-odds form of a number, where the case has one: the plain form may have overflowed."""
    return case.get(f"{name}_stable", case[name])


class Seen:
    local_features, backbone, dataset = None, None, "case"

    def __init__(self, rows):
        self.image_features = torch.as_tensor(rows)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", cases("hftt", "loss_*.npz"))
def test_loss(case, dtype, rtol):
    texts, words, task, outliers = (
        torch.from_numpy(case[name]).to(dtype)
        for name in ("id_features", "ood_features", "task_embeddings", "w_out")
    )
    outliers = outliers.clone().requires_grad_()
    terms = textual_detection_terms(
        texts, words, task.T, outliers.T, float(case["temperature"]), float(case["focal"])
    )
    (slope,) = torch.autograd.grad(terms["loss"], outliers)
    sizes = np.concatenate([case["log_odds_id"], case["log_odds_ood"]])
    rtol = max(rtol, 1e-4) if dtype == torch.float32 and np.abs(sizes).max() > 200 else rtol
    wanted, steepest = better(case, "grad_w_out"), np.abs(better(case, "grad_w_out"))
    close(terms["loss"].item(), better(case, "loss"), rtol=rtol)
    assert (
        np.abs(slope.numpy() - wanted)
        <= rtol
        * np.maximum(
            steepest.max(0), steepest.max() if steepest.max() < 1e3 * steepest.max(0).min() else 0
        )
        + 1e-300
    ).all()
    close(
        -torch.cat([terms["task_log_odds"], terms["word_log_odds"]]).detach(),
        sizes,
        rtol=rtol,
        atol=max(1, np.abs(sizes).max()) * rtol,
    )
    close(terms["task_log_odds"].detach().neg().sigmoid(), case["p_out_id"], atol=1e-5)
    assert (
        textual_detection_loss(
            texts, words, task.T, outliers.T, float(case["temperature"]), float(case["focal"])
        ).item()
        == terms["loss"].item()
    )


@pytest.mark.parametrize("case", cases("hftt", "detection_loss_primitive*.npz"))
def test_focal_mean(case):
    for i, target in enumerate(case["targets"]):
        for j, gamma in enumerate(case["focals"]):
            probs = torch.from_numpy(case["probs"]).requires_grad_()
            loss = focal_mean(probs[:, target].log(), torch.log1p(-probs[:, target]), float(gamma))
            close(
                loss.item(), case["loss"][i, j], rtol=1e-10 if case["probs"].min() > 1e-6 else 1e-4
            )
            close(
                torch.autograd.grad(loss, probs)[0],
                case["grad_probs"][i, j],
                rtol=1e-10 if case["probs"].min() > 1e-6 else 1e-4,
                atol=1e-14,
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", cases("hftt", "ood_score_*.npz"))
def test_score(case, dtype):
    task, outliers = (
        torch.from_numpy(case[name].T).to(dtype) for name in ("task_embeddings", "w_out")
    )
    outliers = F.normalize(outliers, dim=1)
    images = torch.from_numpy(
        np.concatenate([case["id_image_features"], case["ood_image_features"]])
    ).to(dtype)
    exact, labels = dtype == torch.float64, case["labels"]
    close(
        1
        - task_log_odds(
            images @ task.T, images @ outliers.T, float(case["temperature"]), probability=True
        ),
        case["scores"],
        atol=1e-12 if exact else 1e-5,
    )
    detector = HFTTDetector(
        "hftt",
        torch.from_numpy(case["task_embeddings"].T),
        torch.from_numpy(case["w_out"].T),
        float(case["temperature"]),
    )
    odds = detector.score(Seen(images.float()))
    sides = odds[labels == 0], odds[labels == 1]
    found = detection_metrics(*sides)
    close(
        found["auroc"],
        case["auroc"],
        atol=2e-3 if np.unique(case["scores_f32"]).size < 0.9 * len(labels) else 1e-12,
    )
    if np.unique(case["scores_f32"]).size > 0.9 * len(labels):
        close(
            [fpr_at_tpr(*sides, positive="ood", rule="nearest"), found["fpr95_id_positive"]],
            [case["fpr95_ood_positive"], case["fpr95_id_positive"]],
            atol=1e-12,
        )


@pytest.mark.parametrize("case", cases("hftt", "clip_zeroshot_*.npz"))
def test_task_features_through_a_whole_clip(case):
    tiny = tiny_clip("vit_a", int(case["weight_seed"]), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embeddings, texts = task_features(
            tiny, case["class_names"].tolist(), case["templates"].tolist(), cache=False
        )
    close(embeddings.T, case["task_embeddings"], atol=1e-5)
    close(texts, case["id_text_features"], atol=1e-5)
    close(tiny.encode_texts(case["prompts_unique"].tolist()), case["text_features_raw"], atol=2e-5)
    images = tiny.encode_images(torch.from_numpy(case["images"]))
    close(images, case["image_features_raw"], atol=2e-5)
    close(F.normalize(images, dim=1), case["image_features"], atol=1e-5)


def run_case(case, dtype, run=None, max_steps=None, **more):
    given = {
        name: torch.from_numpy(np.asarray(case[name])).to(dtype)
        for name in ("task_embeddings", "id_text_features", "w_init")
    }
    words = F.normalize(
        torch.from_numpy(case.get("word_features_raw", case.get("word_features"))).to(dtype), dim=1
    )
    initial, order = (
        (given["w_init"], case["word_order"])
        if run is None
        else (given["w_init"][run], case["word_order"][run])
    )
    read = "temperature focal batch_size epochs lr lr_min momentum weight_decay".split()
    settings = HFTTSettings(max_steps=max_steps, **{name: case[name].item() for name in read})
    return train_outliers(
        given["task_embeddings"].T,
        given["id_text_features"],
        words,
        [initial.T],
        lambda epoch: order[epoch],
        settings,
        progress=False,
        **more,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", cases("hftt", "train_*.npz"))
def test_training(case, dtype):
    steps, exact = [], dtype == torch.float64
    done = run_case(
        case,
        dtype,
        watch=lambda row: steps.append((row["loss"], row["lr"])),
        max_steps=int(case["iters"]) + 1 if case["iters"] > 0 else None,
    )
    losses, rates = np.array(steps).T
    close(losses, case["losses"].ravel(), rtol=0 if exact else 1e-4, atol=1e-7 if exact else 1e-5)
    close(rates, case["lr_per_step"].ravel(), atol=1e-12)
    close(
        torch.stack([run.T for (run,) in done.after_epoch]),
        case["w_after_epoch"],
        atol=1e-7 if exact else 1e-4,
    )


def over_runs(metric, runs):
    """Means and standard deviations over runs, the way paper notebooks get them: from rows."""
    fixed = {
        "paper": "hftt",
        "table": "case",
        "method": "hftt",
        "backbone": "tiny",
        "setting": "case",
        "metric": metric,
        "source": "case",
        "std": np.nan,
        "scale": "own",
        "run": "case",
    }
    found = average_seeds(
        pd.DataFrame(
            [
                {**fixed, "dataset": f"set {i}", "value": 100 * value, "seeds": str(seed)}
                for seed, run in enumerate(runs)
                for i, value in enumerate(run)
            ]
        )
    )
    return found["value"] / 100, found["std"] / 100


@pytest.mark.parametrize("case", cases("hftt", "protocol_end_to_end*.npz"))
def test_whole_protocol(case):
    aurocs, fprs = np.zeros((2, *case["auroc_per_epoch"].shape))
    for run in range(int(case["num_exp"])):
        losses = []
        done = run_case(
            case, torch.float32, run, watch=lambda row, losses=losses: losses.append(row["loss"])
        )
        close(losses, case["losses"][run].ravel(), atol=1e-4)
        close(
            torch.stack([F.normalize(rows.T, dim=0) for (rows,) in done.after_epoch]),
            case["w_out_normalised_after_epoch"][run],
            atol=1e-5,
        )
        for epoch, (rows,) in enumerate(done.after_epoch):
            detector = HFTTDetector(
                "hftt",
                torch.from_numpy(case["task_embeddings"].T),
                rows,
                float(case["temperature"]),
            )
            known = detector.score(Seen(case["id_image_features"]))
            strange = [
                detector.score(Seen(case[f"ood_image_features_{i}"]))
                for i in range(len(case["dataset_names"]))
            ]
            aurocs[run, epoch] = [auroc(known, part) for part in strange]
            fprs[run, epoch] = [
                fpr_at_tpr(known, part, positive="ood", rule="nearest") for part in strange
            ]
    close(aurocs, case["auroc_per_epoch"], atol=2e-3)
    close(fprs, case["fpr95_ood_positive_per_epoch"], atol=2 / len(case["id_image_features"]))
    chosen = [oracle_epoch(run) for run in case["auroc_per_epoch"]]
    assert chosen == case["selected_epoch"].tolist()
    for name, metric, values in (
        ("auroc", "auroc", case["auroc_per_epoch"]),
        ("fpr", "fpr95_ood_positive", case["fpr95_ood_positive_per_epoch"]),
    ):
        for which, runs in (
            ("reported", [values[run, epoch] for run, epoch in enumerate(chosen)]),
            ("last_epoch", values[:, -1]),
        ):
            for statistic, got in zip(("mean", "std"), over_runs(metric, runs)):
                close(got, case[f"{which}_{name}_{statistic}"], atol=1e-12)


@pytest.mark.parametrize("case", cases("hftt", "word_file_*.npz"))
def test_word_files(case):
    for i in range(int(case["n_files"])):
        assert (
            word_texts(split_lines(case[f"file_bytes_{i}"].tobytes()))
            == case[f"texts_{i}"].tolist()
        )


@pytest.mark.parametrize("case", cases("hftt", "theory_*.npz"))
def test_theorem_1(case):
    minus, plus = (case[name].mean(0) for name in ("U_minus", "U_plus"))
    theta = (plus - minus) / np.linalg.norm(plus - minus)
    close(theta, case["theta_paper"], atol=1e-8)
    objective = lambda theta: (
        ((1 + case["U_minus"] @ theta) ** 2).mean() + ((1 - case["U_plus"] @ theta) ** 2).mean()
    )
    close(
        [objective(theta), objective(case["theta_star_full_loss"])],
        [case["objective_at_paper"], case["objective_at_star"]],
        rtol=1e-8,
    )
    close(
        (1 + theta @ minus) ** 2 + (1 - theta @ plus) ** 2,
        case["reduced_objective_at_paper"],
        rtol=1e-8,
    )


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1e-4, 0.0015, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("focal", [-1.0, 0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("task, outliers, words", [(1, 1, 1), (3, 40, 7), (30, 2, 5)])
def test_the_loss_is_finite_and_agrees_in_both_precisions(
    temperature, focal, task, outliers, words
):
    rows = [F.normalize(draw(n, 6, seed=i), dim=1) for i, n in enumerate((9, words, task))] + [
        draw(outliers, 6, seed=9)
    ]
    results = []
    for dtype in (torch.float64, torch.float32):
        *fixed, free = (x.to(dtype) for x in rows)
        free = free.requires_grad_()
        loss = textual_detection_loss(*fixed, free, temperature, focal)
        results.append((loss.item(), torch.autograd.grad(loss, free)[0].double()))
    (loss, slope), (rough, rough_slope) = results
    assert math.isfinite(loss) and slope.isfinite().all()
    assert rough == pytest.approx(loss, rel=1e-3, abs=1e-6)
    assert (rough_slope - slope).abs().max() <= max(
        1e-3, 3e-7 / temperature
    ) * slope.abs().max() + 1e-12


@pytest.mark.parametrize("focal", [0.0, 1.0, 3.0])
def test_words_that_are_all_saturated(focal):
    word = F.normalize(draw(1, 4), dim=1)
    free = torch.cat([3 * word, draw(1, 4, seed=2)]).requires_grad_()
    terms = textual_detection_terms(-word, word.expand(5, -1), -word, free, 1e-3, focal)
    assert terms["loss_word"].item() == 0
    assert torch.autograd.grad(terms["loss"], free)[0].isfinite().all()
    nothing = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    assert (
        torch.autograd.grad(textual_detection_loss(word, -word, word, nothing), nothing)[0]
        .isfinite()
        .all()
    )


def test_focal_weights_are_constants():
    odds = draw(6).requires_grad_()
    (slope,) = torch.autograd.grad(focal_mean(F.logsigmoid(-odds), F.logsigmoid(odds), 2.0), odds)
    p_out = odds.detach().neg().sigmoid()
    weights = (1 - p_out) ** 2 / ((1 - p_out) ** 2).sum()
    close(slope, weights * (1 - p_out), atol=1e-12)


def test_a_column_is_scaled_its_gradient_shrinks():
    rows = [F.normalize(draw(n, 6, seed=i), dim=1) for i, n in enumerate((9, 7, 4))]
    slopes = []
    for scale in (1.0, 1e-3, 1e3):
        free = (
            draw(3, 6, seed=9) * torch.tensor([[scale], [1.0], [1.0]], dtype=torch.float64)
        ).requires_grad_()
        slopes.append(
            torch.autograd.grad(textual_detection_loss(*rows, free, 0.1), free)[0][0] * scale
        )
    close(slopes[1], slopes[0], rtol=1e-9)
    close(slopes[2], slopes[0], rtol=1e-9)


@pytest.mark.parametrize(
    "weight_decay, momentum, lr_min, max_steps",
    [(0.0, 0.9, 0.0, None), (0.01, 0.0, 0.05, None), (0.01, 0.9, 0.05, 2)],
)
def test_training_is_plain_sgd(weight_decay, momentum, lr_min, max_steps):
    texts, words, task = (F.normalize(draw(n, 6, seed=i), dim=1) for i, n in enumerate((9, 25, 4)))
    order = lambda epoch: np.random.default_rng(epoch).permutation(25)
    settings = HFTTSettings(
        temperature=0.1,
        batch_size=8,
        epochs=3,
        lr=0.5,
        lr_min=lr_min,
        momentum=momentum,
        weight_decay=weight_decay,
        max_steps=max_steps,
    )
    given = task, texts, words, [draw(3, 6, seed=9)], order, settings
    (got,) = train_outliers(*given, piece=3, progress=False).outliers
    free = draw(3, 6, seed=9).requires_grad_()
    sgd = torch.optim.SGD([free], lr=0.5, momentum=momentum, weight_decay=weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3, eta_min=lr_min)
    for epoch in range(3):
        for rows in torch.from_numpy(order(epoch)).split(8)[:max_steps]:
            sgd.zero_grad()
            textual_detection_loss(texts, words[rows], task, free, 0.1).backward()
            sgd.step()
        cosine.step()
    close(got, free.detach(), atol=1e-10)
