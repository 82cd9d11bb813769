"""Metrics and zero-shot scores against numbers of the published implementations
(data/reference/*/CASES.md says how they were made)."""

import math

import numpy as np
import pytest
import torch

from oodnb.metrics import auroc, aupr, detection_metrics, fpr_at_tpr
from oodnb.scores import (
    cosine_sims,
    energy,
    entropy,
    gl_mcm,
    l_mcm,
    max_logit,
    mcm,
    normalize,
    variance,
)
from reference import cases, close


@pytest.mark.parametrize("case", cases("locoop", "metrics_*.npz"))
def test_metrics(case):
    id_scores, ood_scores = case["id_scores"], case["ood_scores"]
    close(auroc(id_scores, ood_scores), case["auroc"], atol=1e-12)
    close(aupr(id_scores, ood_scores), case["aupr"], atol=1e-12)
    close(
        [fpr_at_tpr(id_scores, ood_scores, tpr=level) for level in case["recall_levels"]],
        case["fpr"],
        atol=1e-12,
    )
    row = detection_metrics(id_scores, ood_scores)
    close(
        [row["auroc"], row["aupr_in"], row["fpr95_id_positive"]],
        [case["auroc"], case["aupr"], case["fpr"][0]],
        atol=1e-12,
    )


@pytest.mark.parametrize("case", cases("locoop", "scores_*.npz"))
def test_mcm_and_gl_mcm_from_logits(case):
    sims, local_sims = (
        torch.from_numpy(case[name]) / 100 for name in ("logits_global", "logits_local")
    )
    close([mcm(sims, t).numpy() for t in case["temperatures"]], case["mcm"], rtol=2e-6)
    close(
        [gl_mcm(sims, local_sims, t).numpy() for t in case["temperatures"]],
        case["glmcm"],
        rtol=2e-6,
    )


@pytest.mark.parametrize("case", cases("locoop", "glmcm_from_features.npz"))
def test_gl_mcm_from_features(case):
    sims = cosine_sims(case["global_features"], case["text_features"])
    local_sims = cosine_sims(
        torch.from_numpy(case["local_features"]).flatten(1, 2), case["text_features"]
    )
    close([mcm(sims, t).numpy() for t in case["temperatures"]], case["mcm"], rtol=2e-5)
    close([l_mcm(local_sims, t).numpy() for t in case["temperatures"]], case["lmcm"], rtol=2e-5)
    close(
        [
            [gl_mcm(sims, local_sims, t, w).numpy() for w in case["lambdas"]]
            for t in case["temperatures"]
        ],
        case["glmcm"],
        rtol=2e-5,
    )


@pytest.mark.parametrize("case", cases("locoop", "mcm_family_from_features.npz"))
def test_other_scores_on_cosines(case):
    sims = cosine_sims(case["global_features"], case["text_features"])
    for name, score in dict(mcm=mcm, energy=energy, entropy=entropy).items():
        close(
            [score(sims, t).numpy() for t in case["temperatures"]],
            case[f"score_{name}"],
            rtol=2e-5,
            atol=1e-6,
        )
    close(
        [max_logit(sims).numpy() for _ in case["temperatures"]],
        case["score_max_logit"],
        rtol=2e-5,
        atol=1e-6,
    )
    close(
        [variance(sims, t).numpy() for t in case["temperatures"]],
        case["score_var"],
        rtol=2e-4,
        atol=1e-12,
    )


@pytest.mark.parametrize("case", cases("clipn", "p05_fpr95.npz"))
def test_interpolated_and_first_crossing_fpr95(case):
    for name in {key.rsplit("_", 1)[0] for key in case if key.endswith("_id")}:
        id_scores, ood_scores = case[f"{name}_id"], case[f"{name}_ood"]
        close(auroc(id_scores, ood_scores), case[f"{name}_auroc"], atol=1e-12)
        close(
            fpr_at_tpr(id_scores, ood_scores, rule="interpolate"), case[f"{name}_fpr95"], atol=1e-12
        )
        close(
            fpr_at_tpr(id_scores, ood_scores, rule="at_least"),
            case[f"{name}_fpr95_first_crossing"],
            atol=1e-12,
        )


@pytest.mark.parametrize("case", cases("hftt", "metrics_auroc_fpr.npz"))
def test_both_conventions(case):
    for i in range(int(case["n_cases"])):
        scores, labels, level = (
            -case[f"scores_{i}"],
            case[f"labels_{i}"],
            float(case[f"recall_{i}"]),
        )
        id_scores, ood_scores = scores[labels == 0], scores[labels == 1]
        close(auroc(id_scores, ood_scores), case[f"auroc_{i}"], atol=1e-12)
        for positive in ("id", "ood"):
            close(
                fpr_at_tpr(id_scores, ood_scores, level, positive, rule="nearest"),
                case[f"fpr_{positive}_positive_{i}"],
                atol=1e-12,
            )


@pytest.mark.parametrize("case", cases("hftt", "mcm_score.npz"))
def test_mcm_at_clips_own_temperature(case):
    texts = torch.from_numpy(case["task_embeddings"]).double()
    sims = [
        normalize(case[f"{side}_image_features_raw"].astype(np.float64)) @ texts
        for side in ("id", "ood")
    ]
    scores = [mcm(side, float(case["temperature"])) for side in sims]
    close(-torch.cat(scores), case["ood_scores"], atol=1e-12)
    row, pairs = detection_metrics(*scores), math.prod(map(len, scores))
    close(row["auroc"], case["auroc"], atol=2 / pairs)
    hftts = fpr_at_tpr(*scores, positive="ood", rule="nearest")
    close(hftts, case["fpr95_ood_positive"], atol=2 / pairs)
    close(row["fpr95_id_positive"], case["fpr95_id_positive"], atol=2 / pairs)


@pytest.mark.parametrize("case", cases("toe", "10_scores_cosine_mcm.npz"))
def test_scores_with_the_sign_turned(case):
    sims, temperature = (
        cosine_sims(case["image_features"], case["text_features"]),
        float(case["temperature"]),
    )
    close(-mcm(sims, temperature), case["MCM"], rtol=1e-5, atol=1e-6)
    close(-max_logit(sims), case["max_logit"], rtol=1e-5, atol=1e-6)
    close(-energy(sims, temperature), case["energy"], rtol=1e-5, atol=1e-6)
    close(-entropy(sims, temperature), case["entropy"], rtol=1e-4, atol=1e-6)
    close(-variance(sims, temperature), case["var"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", cases("toe", "11_metrics.npz"))
def test_metrics_of_energies(case):
    for i in range(int(case["n"])):
        row = detection_metrics(-case[f"in_{i}"], -case[f"out_{i}"])
        close(
            [row["auroc"], row["aupr_in"], row["fpr95_id_positive"]],
            case[f"measures_{i}"],
            atol=1e-10,
        )
