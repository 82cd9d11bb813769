"""Zero-shot scores: PyTorch in float64 as oracle, limits, and what is refused."""

import math

import numpy as np
import pytest
import torch

from oodnb.scores import (
    cosine_sims,
    energy,
    entropy,
    gl_mcm,
    l_mcm,
    max_logit,
    mcm,
    msp,
    normalize,
    variance,
)

SCORES = dict(
    mcm=mcm, msp=msp, max_logit=max_logit, energy=energy, entropy=entropy, variance=variance
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(name, x, t):
    p = (x / t).softmax(-1)
    return dict(
        mcm=p.amax(-1),
        energy=t * (x / t).logsumexp(-1),
        entropy=torch.special.entr(p).sum(-1).neg(),
        variance=p.var(-1, correction=0),
    )[name]


@pytest.mark.parametrize("name", ["mcm", "energy", "entropy", "variance"])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-9), (torch.float32, 5e-5)])
def test_pytorch_agrees(name, temperature, dtype, rtol):
    x = draw(20, 30).to(dtype)
    got = SCORES[name](x, temperature=temperature)
    assert got.dtype == dtype and got.shape == (20,)
    torch.testing.assert_close(
        got.double(),
        oracle(name, x.double(), temperature),
        rtol=rtol,
        atol=1e-6 if dtype == torch.float32 else 1e-12,
    )


def test_msp_and_max_logit():
    x = draw(20, 30)
    torch.testing.assert_close(msp(x), x.softmax(-1).amax(-1))
    assert torch.equal(max_logit(x), x.amax(-1))


def test_local_scores_are_the_best_region():
    sims, local_sims = draw(5, 7), draw(5, 9, 7, seed=1)
    best = torch.stack([mcm(local_sims[:, r]) for r in range(9)]).amax(0)
    torch.testing.assert_close(l_mcm(local_sims), best)
    torch.testing.assert_close(
        gl_mcm(sims, local_sims, 0.5, 0.3), mcm(sims, 0.5) + 0.3 * l_mcm(local_sims, 0.5)
    )


@pytest.mark.parametrize("name", SCORES)
def test_order_of_classes_and_input_kind_do_not_matter(name):
    x = draw(6, 11).float()
    score = SCORES[name]
    torch.testing.assert_close(
        score(x[:, torch.randperm(11, generator=torch.Generator().manual_seed(0))]), score(x)
    )
    assert torch.equal(score(x.numpy()), score(x)) and torch.equal(score(x.tolist()), score(x))
    assert torch.equal(x, draw(6, 11).float()), "a score must not change its input"


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-3, 1.0, 1e5, 1e38, 1e300])
@pytest.mark.parametrize("classes", [1, 2, 40])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_any_temperature_is_stable(temperature, classes, scale):
    x = (draw(8, classes) * scale).float()
    for score in (mcm, entropy, variance):
        assert score(x, temperature=temperature).isfinite().all()
    assert not energy(x, temperature=temperature).isnan().any()
    assert (mcm(x, temperature) >= 1 / classes * (1 - 1e-6)).all() and (
        mcm(x, temperature) <= 1
    ).all()
    assert (l_mcm(x[:, None], temperature) == mcm(x, temperature)).all()


def test_variance_of_nearly_uniform_softmax():
    x = (draw(8, 1000) * 0.03 + 0.2).float()
    exact = variance(x.double(), 1e5)
    torch.testing.assert_close(variance(x, 1e5).double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        exact, x.double().var(-1, correction=0) / 1e10 / 1e6, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize(
    "values, message",
    [
        (torch.zeros(2, 3).half(), "about 30 distinct values"),
        (torch.zeros(2, 3).bfloat16(), "float32"),
        (np.zeros((2, 3), np.float16), "float32"),
        (torch.tensor([[0.1, math.nan]]), r"first at index \[0, 1\]"),
        (torch.tensor([[0.1, 0.2], [math.inf, 0.1]]), r"first at index \[1, 0\]"),
        (torch.zeros(3), r"\[N, K\]"),
        (torch.zeros(2, 4, 3), r"\[2, 4, 3\]"),
        (torch.zeros(2, 0), r"\[2, 0\]"),
    ],
)
def test_refused_values(score, values, message):
    with pytest.raises(ValueError, match=message):
        score(values)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_refused_temperatures(temperature):
    for call in (mcm, energy, entropy, variance):
        with pytest.raises(ValueError, match="positive and finite"):
            call(torch.zeros(2, 3), temperature=temperature)
    with pytest.raises(ValueError, match="positive and finite"):
        gl_mcm(torch.zeros(2, 3), torch.zeros(2, 4, 3), temperature=temperature)


def test_refused_local_shapes():
    for local_sims in (torch.zeros(2, 3), torch.zeros(2, 0, 3), torch.zeros(2, 2, 2, 3)):
        with pytest.raises(ValueError, match=r"\[N, R, K\]"):
            l_mcm(local_sims)
    with pytest.raises(ValueError, match="same images and classes"):
        gl_mcm(torch.zeros(2, 3), torch.zeros(2, 4, 5))


def test_features_of_any_length_and_precision():
    features = draw(4, 8)
    for factor in (1e-30, 1.0, 1e30):
        torch.testing.assert_close(
            normalize((features * factor).float()),
            torch.nn.functional.normalize(features, dim=-1).float(),
        )
    assert cosine_sims(features.half(), features.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(
        cosine_sims(features, features).diagonal(), torch.ones(4, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match=r"first is row \[2\]"):
        normalize(torch.tensor([[1.0, 2.0], [3.0, 4.0], [math.nan, 1.0]]))


def test_empty_batches_and_gradients_pass():
    assert mcm(torch.zeros(0, 3)).shape == (0,) and l_mcm(torch.zeros(0, 4, 3)).shape == (0,)
    for score in SCORES.values():
        x = draw(3, 5).requires_grad_()
        score(x).sum().backward()
        assert x.grad.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda x: gl_mcm(x[:, 0], x, 0.3), draw(2, 4, 5).requires_grad_()
    )
