"""TOE's training against numbers of the published implementation (data/reference/toe/CASES.md says
how they were made)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oodnb.backbones import tiny_clip
from oodnb.toe.classifier_heads import (
    TextNoise,
    TOESettings,
    cosine_multiplier,
    head_logits,
    noisy_texts,
    train_head,
)
from oodnb.losses import (
    energy_logistic_loss,
    energy_margin_loss,
    outlier_exposure_loss,
    weighted_energy,
)
from oodnb.toe.virtual_outliers import (
    VirtualOutliers,
    farthest_normals,
    longest_draws,
    sample_outliers,
    train_virtual,
)
from reference import cases, close

LAYERS = ("fc", "fc1", "fc2", "fc3")


def tensors(case, dtype=None):
    """The arrays of a case as tensors; texts and flags stay out."""
    found = {
        name: torch.from_numpy(np.atleast_1d(value)).reshape(value.shape)
        for name, value in case.items()
        if value.dtype.kind in "fiu"
    }
    return {
        name: value.to(dtype) if dtype and value.is_floating_point() else value
        for name, value in found.items()
    }


def head_of(case, prefix=""):
    names = (
        [f"{prefix}{layer}_" for layer in LAYERS]
        if f"{prefix}fc_weight" in case or f"{prefix}fc1_weight" in case
        else [prefix]
    )
    return [
        tuple(torch.from_numpy(np.asarray(case[f"{name}{part}"])) for part in ("weight", "bias"))
        for name in names
        if f"{name}weight" in case
    ]


def same_head(head, case, prefix):
    for layer, wanted in zip(head, head_of(case, prefix), strict=True):
        for got, want in zip(layer, wanted):
            close(got, want, rtol=1e-4, atol=5e-5)


def exact(case):
    return any(value.dtype == np.float64 and value.ndim > 1 for value in case.values())


@pytest.mark.parametrize("case", cases("toe", "0?_noise*.npz"))
def test_noise(case):
    t = tensors(case)
    variance, tolerance = (
        float(case["variance"]),
        dict(rtol=1e-9, atol=1e-12)
        if case["x"].dtype == np.float64
        else dict(rtol=1e-5, atol=1e-6),
    )
    close(noisy_texts(t["x"], t["eps"], variance), case["out"], **tolerance)
    close(
        noisy_texts(t["x"], t["eps"], variance, normalize_first=False),
        case["out_no_prenorm"],
        **tolerance,
    )
    close(noisy_texts(t["x"], t["eps"], variance, t["offset"]), case["out_offset"], **tolerance)
    close(noisy_texts(t["x"], t["eps"], variance, radius=t["u"]), case["out_ball"], **tolerance)
    assert torch.equal(noisy_texts(t["x"], t["eps"], 0.0), t["x"])
    several = noisy_texts(
        t["x"], t["eps"], torch.tensor([0.0, variance], dtype=torch.float64)[:, None, None]
    )
    close(several[1], case["out"], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["gaussian", "ball"])
@pytest.mark.parametrize("offset", ["off", "once", "twice"])
def test_noise_of_one_head_is_that_of_the_head_beside_others(kind, offset, dtype):
    images, texts = draw(3, 5, 7, dtype=dtype), draw(3, 6, 7, seed=1, dtype=dtype)
    eps = draw(3, 6, 7, seed=2, dtype=torch.float32)
    uniform = torch.rand(3, 6, generator=torch.Generator().manual_seed(3))
    # a root of a ball's radius may differ in its last bit where it is taken for several at once
    exact = dict(rtol=4 * torch.finfo(dtype).eps if kind == "ball" else 0, atol=0)
    variances = (0.0, 0.016, 0.3)
    together = TextNoise(kind, variances, offset=offset)(images, texts, eps, uniform)
    for i, variance in enumerate(variances):
        for given in (variance, (variance,)):
            alone = TextNoise(kind, given, offset=offset)(images[i], texts[i], eps[i], uniform[i])
            for one, several in zip(alone, together):
                assert one.dtype == dtype
                torch.testing.assert_close(one.reshape(several[i].shape), several[i], **exact)


def step_noise(variant, variance):
    """The settings that a variant's name stands for."""
    return TextNoise(
        "uniform" if "flag off" in variant else "gaussian",
        variance,
        standardize="standardised" in variant or "text map" in variant,
        offset="twice" if "offset" in variant else "off",
    )


@pytest.mark.parametrize("case", cases("toe", "*_oe_step*.npz"))
def test_step(case):
    t, variant = tensors(case), str(case["variant"])
    large = float(np.abs(case["logits"]).max()) > 1e4
    values, grads = (
        (dict(rtol=1e-5), dict(rtol=1e-5, atol=1e-6))
        if large
        else (dict(rtol=1e-9, atol=1e-9), dict(rtol=1e-8, atol=1e-9))
        if exact(case) and case["logits"].dtype == np.float64
        else (dict(rtol=1e-5, atol=1e-6), dict(rtol=1e-4, atol=1e-6))
    )
    alone = len(case["head_input"]) == len(case["image_features"])
    images, texts = (
        (t["image_features"], None)
        if alone
        else step_noise(variant, float(case["noise_variance"]))(
            t["image_features"], t["text_features"], t["eps"], t["uniform"]
        )
    )
    head = [(t["weight"].requires_grad_(), t["bias"].requires_grad_())]
    rows = images if alone else torch.cat([images, texts])
    close(rows, case["head_input"], **values)
    logits = head_logits(head, rows)
    logits.retain_grad()
    close(logits.detach(), case["logits"], **values)
    sides = logits[: len(images)], t["labels"], None if alone else logits[len(images) :]
    loss = (
        energy_logistic_loss(
            *sides, *(t[name] for name in ("w_fg", "w_bg", "lr_weight", "lr_bias"))
        )
        if "w_fg" in t
        else outlier_exposure_loss(*sides)
    )
    loss.backward()
    close(loss.item(), case["loss"], **values)
    close(
        outlier_exposure_loss(logits[: len(images)].detach(), t["labels"], None),
        case["ce"],
        **values,
    )
    for got, want in (
        (logits.grad, "grad_logits"),
        (head[0][0].grad, "grad_weight"),
        (head[0][1].grad, "grad_bias"),
    ):
        close(
            got, case[want], **{**grads, "atol": grads["atol"] * max(1, np.abs(case[want]).max())}
        )
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("case", cases("toe", "*_study_*.npz"))
def test_step_of_the_study(case):
    t = tensors(case)
    images, outliers = t["image_features"], t["outlier_features"]
    if bool(case["normalise_inputs"]):
        images, outliers = F.normalize(images, dim=1), F.normalize(outliers, dim=1)
    if str(case["outlier_domain"]) == "text":
        outliers = noisy_texts(outliers, t["eps"])
    close(torch.cat([images, outliers]), case["head_input"], rtol=1e-5, atol=1e-6)
    head = [(t["weight"].requires_grad_(), t["bias"].requires_grad_())]
    known, other = head_logits(head, images), head_logits(head, outliers)
    close(torch.cat([known, other]).detach(), case["logits"], rtol=1e-5, atol=2e-6)
    loss = (
        energy_margin_loss(known, t["labels"], other, float(case["m_in"]), float(case["m_out"]))
        if str(case["loss_score"]) == "energy"
        else outlier_exposure_loss(known, t["labels"], other)
    )
    loss.backward()
    close(loss.item(), case["loss"], rtol=1e-5)
    for got, want in ((head[0][0].grad, "grad_weight"), (head[0][1].grad, "grad_bias")):
        close(got, case[want], rtol=1e-4, atol=1e-6 * max(1, np.abs(case[want]).max()))


def trained_as(case):
    """Two epochs or more with the order and the noise of a case."""
    t, size, losses, steps = tensors(case), int(case["text_batch"]), [], []
    drawn = lambda epoch, step, count: (case["eps"][epoch][step * size : step * size + count], None)
    watch = lambda row: (losses.append(row["loss"]), steps.append(row["epoch"]))
    settings = TOESettings(
        variance=float(case["noise_variance"]),
        image_batch=int(case["image_batch"]),
        outlier_batch=size,
        epochs=len(case["eps"]),
        lr=float(case["lr"]),
    )
    order = lambda epoch: (case["image_order"][epoch], case["text_order"][epoch])
    done = train_head(
        t["image_features"],
        case["labels"],
        t["text_features"],
        [head_of(case, "init_")],
        order,
        settings,
        draw=drawn,
        watch=watch,
        progress=False,
    )
    return done.heads[0], losses, steps


@pytest.mark.parametrize("case", cases("toe", "*_train_*.npz"))
def test_training(case):
    head, losses, steps = trained_as(case)
    close(losses, case["losses"], rtol=1e-4)
    assert [sum(epoch <= last for epoch in steps) for last in range(len(case["eps"]))] == case[
        "steps_after_epoch"
    ].tolist()
    same_head(head, case, "final_")
    logits = head_logits(head, torch.from_numpy(case["image_features"]))
    close(-logits.logsumexp(1), case["energy_after"], rtol=1e-4, atol=1e-4)
    close((logits.argmax(1).numpy() == case["labels"]).mean(), case["accuracy_after"], atol=1e-12)
    parts = [
        F.cross_entropy(part, torch.from_numpy(labels)).item()
        for part, labels in zip(
            logits.split(int(case["image_batch"])),
            np.split(
                case["labels"],
                range(int(case["image_batch"]), len(logits), int(case["image_batch"])),
            ),
        )
    ]
    close(np.mean(parts), case["mean_batch_loss_after"], rtol=1e-4)


def virtual_as(case, **more):
    """The synthesis of a case, with its draws and constants."""
    steps, batch = case["image_labels"].shape
    flat = lambda name: torch.from_numpy(case[name].reshape(steps * batch, *case[name].shape[2:]))
    words = "text_features" in case
    at = lambda epoch: np.arange(epoch * batch, (epoch + 1) * batch)
    drawn = lambda epoch, step: (
        longest_draws(torch.from_numpy(case["normals"][epoch]), int(case["select"]))[None],
        case["uniform"][epoch][None] if words else None,
    )
    constants = [
        torch.from_numpy(case[name])[None] for name in ("weight_energy", "lr_weight", "lr_bias")
    ]
    synthesis = VirtualOutliers(
        int(case["queue_size"]),
        int(case["sample_from"]),
        int(case["select"]),
        int(case["start_epoch"]),
        weight=float(case["loss_weight"]),
        train_energy=False,
    )
    texts = (flat("text_features"), flat("text_labels")) if words else None
    settings = TOESettings(
        image_batch=batch, outlier_batch=batch, epochs=steps, lr=float(case["lr"])
    )
    return train_virtual(
        flat("image_features"),
        flat("image_labels"),
        texts,
        [head_of(case, "init_")],
        lambda epoch: (at(epoch), at(epoch) if words else None),
        drawn,
        constants,
        settings,
        synthesis,
        progress=False,
        **more,
    )


@pytest.mark.parametrize("case", cases("toe", "*_synthesis_*.npz"))
def test_synthesis(case):
    rows = []
    done = virtual_as(case, watch=rows.append)
    assert [row["synthesised"] == 1 for row in rows] == case["synthesised"].tolist()
    assert done.queues.counts[0].tolist() == case["count_after"].tolist()
    close([row["loss"] for row in rows], case["losses"], rtol=1e-4)
    close(done.queues.rows[0], case["queue_after"], rtol=1e-5, atol=1e-6)
    same_head(done.heads[0], case, "final_")
    if done.outliers is None:
        return
    close(done.outliers[0], case["last_outliers"], rtol=1e-3, atol=1e-4)
    last = int(np.flatnonzero(case["synthesised"])[-1])
    head = virtual_as(case, stop_after=last).heads[0]
    constants = [
        torch.from_numpy(case[name]).requires_grad_()
        for name in ("weight_energy", "lr_weight", "lr_bias")
    ]
    logits = head_logits(head, done.outliers[0])
    close(logits, case["last_outlier_logits"], rtol=1e-3, atol=1e-4)
    loss = energy_logistic_loss(
        head_logits(head, torch.from_numpy(case["image_features"][last])),
        torch.from_numpy(case["image_labels"][last]),
        logits,
        constants[0],
        *constants,
        float(case["loss_weight"]),
    )
    for got, want in zip(
        torch.autograd.grad(loss, constants), ("weight_energy", "lr_weight", "lr_bias")
    ):
        close(got, case[f"last_grad_{want}"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", cases("toe", "*_heads*.npz"))
def test_heads(case):
    for kind in ("linear", "mlp", "multi"):
        close(
            head_logits(head_of(case, f"{kind}_"), torch.from_numpy(case["x"])),
            case[f"{kind}_out"],
            **(dict(rtol=1e-9) if case["x"].dtype == np.float64 else dict(rtol=1e-5, atol=1e-6)),
        )


@pytest.mark.parametrize("case", cases("toe", "*_cosine_schedule*.npz"))
def test_schedule(case):
    for i in range(int(case["n"])):
        close(
            [
                cosine_multiplier(int(step), int(case[f"total_{i}"]), float(case[f"low_{i}"]))
                for step in np.atleast_1d(case[f"steps_{i}"])
            ],
            np.atleast_1d(case[f"mult_{i}"]),
            atol=1e-12,
        )


@pytest.mark.parametrize("case", cases("toe", "*_tiny_clip_training.npz"))
def test_a_whole_clip(case):
    t, size = tensors(case), int(case["text_batch"])
    clip = tiny_clip("vit_a", int(case["weight_seed"]), device="cpu")
    with torch.no_grad():
        images, texts = clip.encode_images(t["pixels"]), clip.model.encode_text(t["tokens"])
    close(images, case["image_features"], rtol=1e-4, atol=1e-5)
    close(texts, case["text_features"], rtol=1e-4, atol=1e-5)
    losses = []
    settings = TOESettings(
        variance=float(case["noise_variance"]),
        offset="twice" if "offset" in str(case.get("variant", "")) else "off",
        image_batch=int(case["image_batch"]),
        outlier_batch=size,
        epochs=1,
        lr=float(case["lr"]),
    )
    done = train_head(
        images,
        t["labels"],
        texts,
        [head_of(case, "init_")],
        lambda epoch: (np.arange(len(images)), np.arange(len(texts))),
        settings,
        draw=lambda epoch, step, count: (case["eps"][step], None),
        watch=lambda row: losses.append(row["loss"]),
        progress=False,
    )
    close(losses, case["losses"], rtol=1e-4)
    same_head(done.heads[0], case, "final_")
    close(
        -head_logits(done.heads[0], images).logsumexp(1), case["energy_after"], rtol=1e-4, atol=1e-4
    )


# kinds of input that the files here do not have


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "images, outliers, classes, scale",
    [(3, 5, 4, 1e6), (2, 40, 400, 1.0), (1, 1, 1, 50.0), (4, 1, 2, 1e5)],
)
def test_every_loss_is_finite_and_as_defined(images, outliers, classes, scale, dtype):
    known, other = (scale * draw(n, classes, seed=n) for n in (images, outliers))
    labels, w, slope, intercept = (
        torch.arange(images) % classes,
        draw(classes, seed=5).abs() + 0.1,
        draw(2, 1),
        draw(2, seed=1),
    )
    ce = F.cross_entropy(known, labels)
    energy = lambda z: z.amax(1) + ((z - z.amax(1, keepdim=True)).exp() * w).sum(1).log()
    line = torch.cat([energy(known), energy(other)])[:, None] @ slope.T + intercept
    defined = {
        "uniform": ce + 0.5 * (other.logsumexp(1) - other.mean(1)).mean(),
        "margin": ce
        + 0.1
        * (
            (-known.logsumexp(1) + 25).relu().square().mean()
            + (-7 + other.logsumexp(1)).relu().square().mean()
        ),
        "line": ce + 0.1 * F.cross_entropy(line, (torch.arange(images + outliers) < images).long()),
    }
    inputs = known.to(dtype).requires_grad_(), labels, other.to(dtype).requires_grad_()
    found = {
        "uniform": outlier_exposure_loss(*inputs),
        "margin": energy_margin_loss(*inputs),
        "line": energy_logistic_loss(*inputs, w, w, slope, intercept),
    }
    for name, loss in found.items():
        assert loss.item() == pytest.approx(
            defined[name].item(), rel=1e-5 if dtype == torch.float32 else 1e-10, abs=1e-6
        )
        assert all(
            grad.isfinite().all()
            for grad in torch.autograd.grad(loss, (inputs[0], inputs[2]), allow_unused=True)
            if grad is not None
        )
    if classes == 1:
        assert found["uniform"].item() == 0


def test_gradients_by_finite_differences():
    known, other, labels = (
        draw(3, 4).requires_grad_(),
        draw(2, 4, seed=1).requires_grad_(),
        torch.tensor([0, 3, 1]),
    )
    w, slope, intercept = (
        (draw(4, seed=2).abs() + 0.1).requires_grad_(),
        draw(2, 1, seed=3).requires_grad_(),
        draw(2, seed=4).requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda a, b: outlier_exposure_loss(a, labels, b), (known, other)
    )
    assert torch.autograd.gradcheck(
        lambda a, b: energy_margin_loss(a, labels, b, -1.0, 0.0), (known, other)
    )
    assert torch.autograd.gradcheck(
        lambda a, b, *line: energy_logistic_loss(a, labels, b, line[0], *line),
        (known, other, w, slope, intercept),
    )


def test_a_weight_that_is_not_positive_has_no_say():
    z = torch.tensor([[1000.0, 0.0, 1.0]], requires_grad=True)
    close(weighted_energy(z, torch.tensor([-1.0, 2.0, 0.0])).detach(), [math.log(2)], rtol=1e-6)
    assert torch.autograd.grad(weighted_energy(z, torch.zeros(3)).sum(), z)[0].isfinite().all()


@pytest.mark.parametrize(
    "classes, queue, select, pool", [(1, 1, 3, 3), (3, 7, 1, 50), (2, 5, 4, 4)]
)
def test_the_least_likely_draws_are_the_longest(classes, queue, select, pool):
    rows, normals = draw(classes, queue, 4), draw(classes, pool, 4, seed=1)
    samples = sample_outliers(rows, normals).unflatten(0, (classes, pool))
    centred = (rows - rows.mean(1, keepdim=True)).flatten(0, 1)
    covariance = centred.T @ centred / len(centred) + 1e-4 * torch.eye(4, dtype=torch.float64)
    chosen = sample_outliers(rows, longest_draws(normals, select)).unflatten(0, (classes, select))
    for c in range(classes):
        density = torch.distributions.MultivariateNormal(rows[c].mean(0), covariance).log_prob(
            samples[c]
        )
        close(chosen[c], samples[c][(-density).topk(select).indices], rtol=1e-9, atol=1e-12)


def test_drawing_only_the_longest_has_the_same_distribution():
    from scipy.stats import ks_2samp

    short = np.linalg.norm(farthest_normals(np.random.default_rng(1), 4000, 6, 30, 3), axis=-1)
    plain = np.sort(
        np.linalg.norm(np.random.default_rng(2).standard_normal((4000, 30, 6)), axis=-1), axis=1
    )[:, ::-1][:, :3]
    assert all(ks_2samp(short[:, i], plain[:, i]).pvalue > 1e-3 for i in range(3))
    assert np.isfinite(farthest_normals(np.random.default_rng(0), 50, 512, 10_000, 1)).all()
