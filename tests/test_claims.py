"""Claims and premises: the tables that ship, Holm's correction against its definition, tests of a
difference on scores whose truth is known, and verdicts."""

import ast
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from oodnb.evidence.claims import (
    bound_test,
    claim_sets,
    claim_test,
    holm,
    judge_claims,
    load_claims,
    one_sided,
)
from oodnb.evidence.premises import load_premises, premise_account, premises_true, shared_part
from oodnb.mini import MINI_OOD, list_sets
from oodnb.results import METRICS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "nbs" / "papers" / "claims.ipynb"


def table(n=300, effect=0.8, seeds=3, sets=("near", "far"), seed=0):
    """Scores of a method that is better by `effect` than a reference that it agrees with."""
    rng = np.random.default_rng(seed)
    parts = []
    for role, name in [("id", "known"), *(("ood", name) for name in sets)]:
        base = rng.normal(1.0 if role == "id" else 0.0, 1, n)
        rows = pd.DataFrame({"role": role, "dataset": name, "reference": base})
        rows["image_id"] = [f"{name}-{i}" for i in range(n)]
        for k in range(seeds):
            rows[f"method|{k}"] = base + effect * (role == "id") + rng.normal(0, 0.4, n)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


# the tables


def test_claims_are_written_down_and_not_filled_in():
    claims = load_claims()
    assert len(claims) == 17 and (claims["result"] == "").all()
    assert set(claims["family"]) == {"claims", "world"} and (claims["alpha"] == 0.05).all()
    for claim in claims.to_dict("records"):
        assert (ROOT / "nbs" / "papers" / f"{claim['notebook']}.ipynb").is_file(), claim["id"]
        assert claim["source"] and claim["premises"] and claim["claim"]
        if claim["test"] == "paired":
            assert claim["metric"] in METRICS and claim_sets(claim["sets"]), claim["id"]
        else:
            assert float(claim["reference"]) > 0 and claim["sets"] == "tasks"


def test_every_premise_that_a_claim_needs_is_stated():
    needed = {name for line in load_claims()["premises"] for name in line.split()}
    premises = load_premises()
    assert needed <= set(premises["id"]) and premises["id"].is_unique
    assert set(premises["relation"]) == {"at least", "at most"}


def test_sets_are_those_of_the_mini_world():
    known = {one["name"] for one in list_sets()}
    for sets in ("far", "objects", "all"):
        assert set(claim_sets(sets)) <= known & set(MINI_OOD)
    assert set(claim_sets("all")) == set(MINI_OOD) and "mini-near" not in claim_sets("far")
    with pytest.raises(ValueError, match="There are no sets 'close' at scale 'mini'"):
        claim_sets("close")


def test_the_page_asks_for_no_test_split():
    """Whatever data set the page of premises names, it is not the split that results come from."""
    cells = json.loads(PAGE.read_text("utf-8"))["cells"]
    code = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    loads = [
        [getattr(a, "value", None) for a in node.args]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and (
            getattr(node.func, "id", "") in ("load_dataset", "load_split")
            or getattr(node.func, "id", "") == "partial"
            and getattr(node.args[0], "id", "") == "load_dataset"
        )
    ]
    assert len(loads) == 3
    for arguments in loads:
        name, split = arguments[-2:]
        assert split in ("val", "fewshot", "train") and name not in MINI_OOD, arguments
    assert 'forget_plan("mini", split="val")' in code


# the correction


def by_definition(p):
    """Holm: the claims from the smallest p on, each against alpha over those that are left, until
    one does not pass; the corrected p-value is the smallest alpha at which a claim passes."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected = [0.0] * len(p)
    for place, i in enumerate(order):
        earlier = [(len(p) - k) * p[order[k]] for k in range(place + 1)]
        corrected[i] = min(1.0, max(earlier))
    return corrected


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_holm_against_its_definition(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        p = (rng.random(n) ** 3).tolist()
        assert holm(p) == pytest.approx(by_definition(p))
    for order in itertools.permutations([0.01, 0.02, 0.04]):
        assert dict(zip(order, holm(order))) == pytest.approx({0.01: 0.03, 0.02: 0.04, 0.04: 0.04})


def test_claims_that_were_not_run_count():
    assert holm([0.01, 0.02], total=10) == pytest.approx([0.1, 0.18])
    with pytest.raises(ValueError, match="A family of 1 claims cannot have 2"):
        holm([0.1, 0.2], total=1)
    for wrong in ([0.1, np.nan], [-0.1], [1.1]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm(wrong)


# the tests


@pytest.mark.parametrize("metric", METRICS)
def test_a_better_method_is_found_and_a_worse_one_is_not(metric):
    better = claim_test(
        table(),
        [f"method|{k}" for k in range(3)],
        ["reference"],
        metric,
        ("near", "far"),
        n_boot=400,
    )
    assert better["difference"] > 0 and better["low"] > 0 and better["p_value"] == 1 / 401
    worse = claim_test(
        table(effect=-0.8), ["method|0"], ["reference"], metric, ("near",), n_boot=400
    )
    assert worse["difference"] < 0 and worse["p_value"] > 0.9 and np.isnan(worse["std"])


def test_the_margin_is_what_must_be_exceeded():
    scores = table(effect=0.0, seeds=1, n=600)
    draw = lambda margin: claim_test(
        scores, ["method|0"], ["reference"], "auroc", ("near",), margin, n_boot=400
    )
    assert draw(-5)["p_value"] < 0.01, "not five points worse"
    assert draw(5)["p_value"] > 0.99 and draw(0)["difference"] == draw(5)["difference"]


def test_equal_methods_are_rarely_found_better():
    """Two columns of one truth: p-values below 5 % come about as often as 5 % says."""
    found = []
    for seed in range(120):
        rng = np.random.default_rng([seed, 1])
        scores = table(n=100, seeds=1, sets=("far",), seed=seed)
        scores["a"] = scores["reference"] + rng.normal(0, 0.5, len(scores))
        scores["b"] = scores["reference"] + rng.normal(0, 0.5, len(scores))
        found.append(claim_test(scores, ["a"], ["b"], "auroc", ("far",), n_boot=100)["p_value"])
    assert 0 < np.mean(np.array(found) < 0.05) < 0.12
    assert 0.35 < np.mean(found) < 0.65


def test_trainings_are_drawn_too():
    """Seeds that disagree make an interval wider than that of their mean."""
    scores = table(effect=0.4, seeds=1, n=400)
    rng = np.random.default_rng(3)
    for k, shift in enumerate((-0.6, 0.0, 0.9)):
        known = scores["role"] == "id"
        scores[f"wild|{k}"] = scores["reference"] + known * shift + rng.normal(0, 0.1, len(scores))
    wild = claim_test(
        scores, [f"wild|{k}" for k in range(3)], ["reference"], "auroc", ("far",), n_boot=300
    )
    alone = claim_test(scores, ["wild|1"], ["reference"], "auroc", ("far",), n_boot=300)
    assert wild["high"] - wild["low"] > 4 * (alone["high"] - alone["low"])
    assert wild["seeds_agree"] != "3 of 3" and wild["std"] > 5


def test_bad_input_is_refused_in_words():
    scores = table(seeds=2)
    with pytest.raises(ValueError, match="3 trainings against 2"):
        claim_test(scores, ["reference"] * 3, ["method|0", "method|1"], "auroc", ("far",))
    with pytest.raises(ValueError, match="has no 'middle'; it has near, far"):
        claim_test(scores, ["reference"], ["method|0"], "auroc", ("middle",))
    with pytest.raises(ValueError, match="finite"):
        one_sided([0.1, np.nan])
    with pytest.raises(ValueError, match="one finite number per task"):
        bound_test([1.0, np.nan], 5)


# verdicts


def test_a_claim_without_its_premise_was_not_tested():
    claims = load_claims()
    true = {name: True for line in claims["premises"] for name in line.split()}
    good, bad = {"p_value": 0.001, "difference": 2.0}, {"p_value": 0.4, "difference": 0.1}
    found = {"locoop-coop-mcm": good, "hftt-mcm": bad, "clipn-ctw-mcm": good, "toe-word": good}
    premises = true | {"captions_match": False}
    result = judge_claims(claims, found, premises).set_index("id")
    assert result.loc["locoop-coop-mcm", "result"] == "holds"
    assert result.loc["hftt-mcm", "result"] == "failed"
    assert result.loc["clipn-ctw-mcm", "result"] == "not tested: captions_match"
    assert result.loc["forget-gone", "result"] == "not run yet"
    assert result.loc["locoop-coop-mcm", "p_corrected"] == pytest.approx(0.015)
    assert result.loc["hftt-mcm", "p_corrected"] == 1.0
    assert (claims["result"] == "").all(), "the claims themselves stay as they are"
    with pytest.raises(ValueError, match="what was not written down before"):
        judge_claims(claims, {"mcm-everything": good}, true)


def test_a_family_is_corrected_by_its_own_size():
    claims, one = load_claims(), {"p_value": 0.02, "difference": 1.0}
    found = {"mcm-maxlogit-objects": one, "mcm-msp": one}
    result = judge_claims(claims, found, {}).set_index("id")["p_corrected"]
    assert result["mcm-maxlogit-objects"] == pytest.approx(0.04)
    assert result["mcm-msp"] == pytest.approx(0.3)


def test_premises_are_compared_the_right_way_round():
    account = premise_account(
        {"names_recognised": 55, "regions_background": 35, "words_read": 94.9}
    )
    assert premises_true(account) == {
        "names_recognised": True,
        "regions_background": True,
        "words_read": False,
    }
    assert premises_true(premise_account({"regions_background": 35.1})) == {
        "regions_background": False
    }
    assert premises_true(premise_account({"words_read": np.nan})) == {}


def test_the_shared_part_is_a_correlation_of_best_and_mean():
    sims = torch.randn(300, 12, generator=torch.Generator().manual_seed(1))
    sims = sims + torch.randn(300, 1, generator=torch.Generator().manual_seed(2))
    values = sims.numpy().astype(np.float64)
    want = np.corrcoef(values.max(1), values.mean(1))[0, 1]
    assert shared_part(sims)["correlation"] == pytest.approx(want)
    mean = sims.mean(1)
    away = torch.cat([10 - 2 * mean[:, None], sims], 1)  # the best falls where the others rise
    assert shared_part(away)["correlation"] < -0.9 and want > 0.9
