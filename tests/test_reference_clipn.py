"""CLIPN against numbers of the published implementation (data/reference/clipn/CASES.md says how
they were made), and its bad inputs."""

import json
import math
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import ROOT, cases, close
from ruled import fill, rule, ruled_backbone

from oodnb.losses import binary_opposite_loss, semantic_opposite_loss
from oodnb.methods.clipn import (
    CLIPNDetector,
    class_weights,
    clipn_detectors,
    clipn_templates,
    decide,
)
from oodnb.metrics import auroc, fpr_at_tpr
from oodnb.clipn.no_branch import NoBranch, import_no_branch, load_no_branch, save_no_branch
from oodnb.scores import atd, ctw, energy, max_logit, msp

PUBLISHED = {"MSP": msp, "MaxLogit": max_logit, "Energy": energy, "CTW": ctw, "ATD": atd}


def text(case, name):
    return json.loads(str(case[name]))


def losses(image, yes, no, scale):
    parts = [
        *binary_opposite_loss(scale * image @ yes.T, scale * image @ no.T),
        semantic_opposite_loss(yes, no),
        semantic_opposite_loss(yes, no, "cosine"),
    ]
    return dict(zip(("bin_yes", "bin_no", "tso", "cos"), parts)) | {
        "total": sum(parts[:3]) / 2,
        "total_cos": (parts[0] + parts[1] + parts[3]) / 2,
    }


@pytest.mark.parametrize("case", cases("clipn", "p0[12]_losses*.npz"))
def test_losses_and_gradients(case):
    exact = case["image"].dtype == np.float64
    value, slope = (
        ({"rtol": 1e-10}, {"rtol": 1e-8, "atol": 1e-11})
        if exact
        else ({"rtol": 1e-5}, {"rtol": 2e-4, "atol": 2e-6})
    )
    free = {
        name: torch.from_numpy(case[name]).clone().requires_grad_()
        for name in ("image", "text", "text_no")
    } | {"scale": torch.tensor(case["scale"], requires_grad=True)}
    got = losses(*free.values())
    for name, stored in {
        "bin_yes": "bin_yes",
        "bin_no": "bin_no",
        "tso": "tso_l2",
        "cos": "tso_cos",
        "total": "total_l2",
        "total_cos": "total_cos",
    }.items():
        close(got[name].item(), case[stored], **value)
    close(
        (free["scale"] * free["image"] @ (free["text"] - free["text_no"]).T).sigmoid().detach(),
        case["p_yes"],
        rtol=1e-9 if exact else 2e-4,
        atol=1e-12 if exact else 1e-6,
    )
    for name in [name for name in case if name.startswith("grad_")]:
        target, wrt = (
            name.removeprefix("grad_").split("_text_no")[0]
            if name.endswith("_text_no")
            else name.removeprefix("grad_").rsplit("_", 1)[0],
            "text_no" if name.endswith("_text_no") else name.rsplit("_", 1)[1],
        )
        close(
            torch.autograd.grad(got[target], free[wrt], retain_graph=True)[0], case[name], **slope
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4, 1e30])
def test_losses_stay_finite(dtype, scale):
    draw = torch.Generator().manual_seed(0)
    image, yes, no = (
        F.normalize(torch.randn(5, 7, generator=draw, dtype=torch.float64), dim=1).to(dtype)
        for _ in range(3)
    )
    for other in (no, yes, -yes, yes + 1e-7, -image):
        other = F.normalize(other, dim=1).clone().requires_grad_()
        got = losses(image, yes, other, scale)
        assert all(math.isfinite(v) for v in (t.item() for t in got.values()))
        for name in ("total", "total_cos"):
            assert torch.autograd.grad(got[name], other, retain_graph=True)[0].isfinite().all()


def test_a_single_pair_has_no_mismatch():
    x = torch.tensor([[0.3]], requires_grad=True)
    match, mismatch = binary_opposite_loss(x, torch.zeros(1, 1))
    assert mismatch.item() == 0 and torch.autograd.grad(match + mismatch, x)[
        0
    ].item() == pytest.approx(-torch.sigmoid(torch.tensor(-0.3)).item())


def test_rows_that_are_not_unit_rows_are_named():
    unit = torch.eye(3)
    with pytest.raises(ValueError, match="no_features must have length 1, but row 1 has 3"):
        semantic_opposite_loss(unit, unit * torch.tensor([[1.0], [3.0], [1.0]]))
    with pytest.raises(ValueError, match="yes_features hold NaN"):
        semantic_opposite_loss(unit * math.nan, unit)
    with pytest.raises(ValueError, match="one row per caption"):
        semantic_opposite_loss(unit, unit[:2])
    assert semantic_opposite_loss(torch.zeros(1, 3), unit[:1]).item() == pytest.approx(
        2 - math.sqrt(2 + 1e-4), rel=1e-6
    )


def scored(name, yes, no):
    return PUBLISHED[name](yes, no) if name in ("CTW", "ATD") else PUBLISHED[name](yes)


@pytest.mark.parametrize("case", cases("clipn", "p04_scores*.npz"))
def test_scores_and_metrics(case):
    fc = [F.normalize(torch.from_numpy(case[f"fc_{side}"]), dim=1) for side in ("yes", "no")]
    sets = ["id", *sorted({name[5:] for name in case if name.startswith("feat_ood")})]
    logits = {
        name: [
            100 * F.normalize(torch.from_numpy(case[f"feat_{name}"]), dim=1) @ rows.T for rows in fc
        ]
        for name in sets
    }
    close(logits["id"][0], case["id_logits_yes"], atol=1e-4)
    close(logits["id"][1], case["id_logits_no"], atol=1e-4)
    for score in PUBLISHED:
        for name in sets:
            close(scored(score, *logits[name]), case[f"{name}_{score}"], rtol=1e-4, atol=5e-5)
        for name in sets[1:]:
            stored = [case[f"{part}_{score}"] for part in ("id", name)]
            close(
                [auroc(*stored), fpr_at_tpr(*stored, rule="interpolate")],
                [case[f"auroc_{name}_{score}"], case[f"fpr95_{name}_{score}"]],
                atol=1e-12,
            )
            own = [scored(score, *logits[part]) for part in ("id", name)]
            close(
                [auroc(*own), fpr_at_tpr(*own, rule="interpolate")],
                [case[f"auroc_{name}_{score}"], case[f"fpr95_{name}_{score}"]],
                atol=2 / min(map(len, own)),
            )
    for name in sets:
        close(energy(100 * logits[name][0]) - 100, case[f"hc_{name}_Energy"], rtol=1e-5, atol=1e-2)
    close((logits["id"][0].argmax(1).numpy() == case["label_id"]).mean(), case["acc"])


@pytest.mark.parametrize("case", cases("clipn", "p04_scores*.npz"))
def test_log_odds_order_as_the_probabilities_and_go_on_where_they_tie(case):
    yes, no = (torch.from_numpy(case[f"id_logits_{side}"]) for side in ("yes", "no"))
    for score in (ctw, atd):
        odds, exact = (
            score(*pair, log_odds=True) for pair in ((yes, no), (yes.double(), no.double()))
        )
        close(odds, exact, rtol=1e-4, atol=1e-4)
        close(odds.double().sigmoid(), score(yes.double(), no.double()), atol=1e-5)
        assert len(odds.unique()) >= len(score(yes, no).unique())


@pytest.mark.parametrize("case", cases("clipn", "p05_*.npz"))
def test_interpolated_fpr95(case):
    for name in (key.removesuffix("_id") for key in case if key.endswith("_id")):
        pair = [case[f"{name}_{part}"] for part in ("id", "ood")]
        close(
            [auroc(*pair), fpr_at_tpr(*pair, rule="interpolate")],
            [case[f"{name}_auroc"], case[f"{name}_fpr95"]],
            atol=1e-12,
        )


def ruled_branch(case, prompts=16):
    config = text(case, "config")
    backbone = ruled_backbone(config, case["rule_seed"])
    branch = fill(NoBranch(backbone, prompts), int(case["rule_seed"]))
    return (backbone, branch.double()) if config.get("dtype") == "float64" else (backbone, branch)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("case", cases("clipn", "p06_*.npz"))
def test_no_text_encoder(case, trim):
    backbone, branch = ruled_branch(case)
    exact = branch.prompt_no.dtype == torch.float64
    near = dict(rtol=1e-8, atol=1e-11) if exact else dict(rtol=1e-4, atol=1e-5)
    tokens, index = torch.from_numpy(case["tokens"].astype(np.int64)), torch.from_numpy(case["idx"])
    close(index, np.random.RandomState(int(case["np_seed"])).randint(0, 17, len(tokens)))
    out, mean = branch(tokens, index, trim), branch(tokens, trim=trim)
    close(out.detach(), case["out_train"], **near)
    close(mean.detach(), case["out_eval"], **near)
    close(backbone.model.to(out.dtype).encode_text(tokens).detach(), case["out_yes"], **near)
    weights = rule("R", out.shape, case["rule_seed"]).to(out.dtype)
    (out * weights).sum().backward()
    named = dict(branch.named_parameters())
    for name in (key.removeprefix("grad_") for key in case if key.removeprefix("grad_") in named):
        close(named[name].grad, case[f"grad_{name}"], **near)
    close(
        branch.token_embedding_no.weight.grad[
            torch.from_numpy(case["token_rows"].astype(np.int64))
        ],
        case["grad_token_embedding_no_rows"],
        **near,
    )
    ends = tokens.argmax(1)
    assert (branch.positional_embedding_no.grad[int(ends.max()) + 1 :] == 0).all() and (
        branch.prompt_no.grad[:, int(ends.max()) + 1 :] == 0
    ).all()
    slope = torch.autograd.grad((mean * weights).sum(), branch.prompt_no)[0]
    close(slope, np.broadcast_to(case["grad_eval_prompt_no_first"], slope.shape), **near)


@pytest.mark.parametrize("case", cases("clipn", "p07_*.npz"))
def test_initialisation(case):
    meta, backbone = text(case, "meta"), ruled_backbone(text(case, "config"), case["rule_seed"])
    branch, source = NoBranch(backbone), backbone.model.state_dict()
    state = branch.state_dict()
    assert set(state) == set(meta["copy_map"]) and sorted(
        name for name, _ in branch.named_parameters()
    ) == sorted(meta["trainable"])
    for name, twin in meta["copy_map"].items():
        assert torch.equal(state[name], source[twin] if twin else torch.zeros_like(state[name])), (
            name
        )
    tokens = torch.from_numpy(case["tokens"].astype(np.int64))
    for got, want in (
        (branch(tokens), "out_no_eval"),
        (branch(tokens, torch.arange(len(tokens)) * 8), "out_no_train"),
        (backbone.model.encode_text(tokens), "out_yes"),
    ):
        close(got.detach(), case[want], atol=1e-6)


@pytest.mark.parametrize("case", cases("clipn", "p08_*.npz"))
def test_class_weights(case):
    backbone, branch = ruled_branch(case)
    templates, names = text(case, "templates"), text(case, "names")
    for row, template in zip(case["tokens"], templates):
        assert (
            backbone.tokenizer([template.replace("{}", name) for name in names]).numpy() == row
        ).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yes, no = class_weights(
            backbone, branch, names, templates, as_written=True, cache=False, progress=False
        )
        plain = clipn_detectors(
            backbone,
            branch,
            names,
            logit_scale=100.0,
            templates=templates,
            as_written=True,
            cache=False,
            progress=False,
        )[0]
    close(yes, case["w_yes"], rtol=1e-4, atol=1e-6)
    close(no, case["w_no"], rtol=1e-4, atol=1e-6)
    assert len(templates) == 1 or np.abs(no.numpy() - case["wrong_order_w_no"]).max() > 1e-4
    features = backbone.encode_images(torch.from_numpy(case["images"]))
    close(features, case["feat"], rtol=1e-3, atol=2e-5)

    class Seen:
        image_features, local_features, backbone, dataset = features, None, None, "case"

    for got, side in zip(plain.logits(Seen()), ("yes", "no")):
        close(got, case[f"logits_{side}"], atol=1e-3)


def test_templates():
    kept = json.loads((ROOT / "clipn" / "p12_prompts_quoted.json").read_text("utf-8"))
    assert clipn_templates(quoted=True) == (tuple(kept["yes"]), tuple(kept["no"]))
    clean, quoted = clipn_templates(), clipn_templates(quoted=True)
    assert all(
        f"'{t}'" in (q, q.removesuffix(","))
        for side in (0, 1)
        for t, q in zip(clean[side], quoted[side])
    )
    tokens = np.load(ROOT / "clipn" / "p12_prompt_tokens.npz")
    tokenizer = ruled_backbone(
        {
            "embed_dim": 8,
            "text": {"width": 32, "layers": 1, "heads": 1},
            "vision": {"width": 32, "layers": 1, "patch_size": 8, "image_size": 16},
        },
        0,
    ).tokenizer
    for name, rows in zip(tokens["names"], tokens["tokens"]):
        for side in (0, 1):
            assert (
                tokenizer([t.replace("{}", str(name)) for t in quoted[side]]).numpy()
                == rows[:, side]
            ).all()


@pytest.mark.parametrize("case", cases("clipn", "p13_*.npz"))
def test_hand_crafted_variant(case):
    backbone, branch = ruled_branch(case, prompts=0)
    branch, captions, lists = branch.double(), text(case, "captions"), clipn_templates(quoted=True)
    chance = random.Random(int(case["py_seed"]))
    for caption, drawn, row, want in zip(
        captions,
        case["draws"],
        case["tokens_train"],
        zip(case["text_features"], case["text_features_no"]),
    ):
        order = list(range(128))
        chance.shuffle(order)
        assert order[0] == drawn
        tokens = backbone.tokenizer([side[drawn].replace("{}", caption) for side in lists])
        assert (tokens.numpy() == row).all()
        close(F.normalize(branch(tokens[1:]), dim=1)[0].detach(), want[1], rtol=1e-8, atol=1e-11)
        close(
            F.normalize(backbone.model.double().encode_text(tokens[:1]), dim=1)[0],
            want[0],
            rtol=1e-8,
            atol=1e-11,
        )
    backbone.model.float()
    chosen = tuple([side[i] for i in case["template_idx"]] for side in lists)
    yes, no = class_weights(
        backbone,
        branch.float(),
        text(case, "names"),
        chosen,
        as_written=True,
        cache=False,
        progress=False,
    )
    close(yes, case["w_yes"], rtol=1e-4, atol=1e-6)
    close(no, case["w_no"], rtol=1e-4, atol=1e-6)


def tiny(width=32):
    return ruled_backbone(
        {
            "embed_dim": 16,
            "text": {"width": width, "layers": 1, "heads": 2},
            "vision": {"width": 32, "layers": 1, "patch_size": 8, "image_size": 16},
        },
        0,
    )


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def test_names_that_are_hard_to_read(backbone):
    names = ["dog", "{}", 'it\'s "quoted"', "crème brûlée", "100 % wool", "very " * 100 + "long"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yes, no = class_weights(backbone, NoBranch(backbone), names, cache=False, progress=False)
    assert (
        yes.isfinite().all()
        and no.isfinite().all()
        and any("were cut" in str(w.message) for w in said)
    )
    with pytest.warns(UserWarning, match="occur more than once"):
        twice = class_weights(
            backbone, NoBranch(backbone), ["cat", "dog", "cat"], "photo", cache=False
        )
    assert all(torch.equal(rows[0], rows[2]) for rows in twice)
    assert decide([[2.0, 1.0, 2.0]], [[1.0, 9.0, 0.0]]).item() == 0


def test_tokens_without_an_end_are_read_at_the_largest_id(backbone):
    branch = NoBranch(backbone)
    tokens = torch.tensor([[49406, 5, 900, 7, 0, 0]])
    close(branch(tokens).detach(), branch(tokens[:, :3]).detach(), atol=1e-6)
    assert branch(tokens[:0]).shape == (0, 16)


def test_a_branch_of_another_width_or_backbone(backbone, tmp_path):
    other, branch = tiny(width=64), NoBranch(backbone)
    torch.save(
        {
            "state_dict": {
                f"module.{name}": tensor
                for name, tensor in {**backbone.model.state_dict(), **branch.state_dict()}.items()
            },
            "lr": np.float32(3e-4),
        },
        tmp_path / "theirs.pt",
    )
    assert torch.equal(
        import_no_branch(tmp_path / "theirs.pt", backbone).token_embedding_no.weight,
        backbone.model.token_embedding.weight,
    )
    with pytest.raises(
        ValueError,
        match=(
            r"whose text tower has width 64.*of another shape: positional_embedding_no \(77, "
            r"32\) instead of \(77, 64\)"
        ),
    ):
        import_no_branch(tmp_path / "theirs.pt", other)
    save_no_branch(tmp_path / "ours.safetensors", branch, backbone)
    with pytest.raises(ValueError, match="its texts mean nothing"):
        load_no_branch(tmp_path / "ours.safetensors", other)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "theirs.pt").read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        import_no_branch(tmp_path / "cut.pt", backbone)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_checkpoint_is_run(backbone, tmp_path):
    mark = tmp_path / "was_here"
    torch.save(
        {
            "state_dict": {**backbone.model.state_dict(), **NoBranch(backbone).state_dict()},
            "optimizer": Evil(str(mark)),
        },
        tmp_path / "evil.pt",
    )
    import_no_branch(tmp_path / "evil.pt", backbone)
    assert not mark.exists()


def test_features_that_are_nothing():
    class Seen:
        local_features, backbone, dataset, image_features = None, None, "case", torch.zeros(1, 3)

    with pytest.raises(ValueError, match="zero, NaN or infinite"):
        CLIPNDetector("ctw", "ctw", torch.eye(3), -torch.eye(3)).score(Seen())
