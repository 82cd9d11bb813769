"""A step of a training asks for no number: it runs on tensors without values.

Under `FakeTensorMode` whatever depends on a value raises: `.item()`, `bool(tensor)`, `nonzero`,
boolean indexing. What a step does there, it does on a GPU without waiting for it."""

import pytest
import torch
from torch._subclasses import fake_tensor

from oodnb.forget import training as forget
from oodnb.hftt import training as hftt
from oodnb.methods.coop import _batch_logits, coop_terms
from oodnb.backbones import load_backbone
from oodnb.methods.locoop import watched_terms
from oodnb.pipeline import train as loop
from oodnb.prompts import PromptContext
from oodnb.toe import classifier_heads as heads

NAMES = ["cat", "dog", "hot air balloon", "a thing with a rather long name"]


@pytest.fixture
def fake():
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def test_a_value_is_missed_there(fake):
    "The tool bites: reading a number, and selecting by one, raise."
    numbers = torch.ones(3)
    for read in (
        lambda: numbers.sum().item(),
        lambda: numbers[numbers > 0],
        lambda: bool(numbers[0]),
    ):
        with pytest.raises(
            (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
        ):
            read()


@pytest.mark.parametrize("method", ["coop", "locoop"])
def test_prompt_learning(method):
    mini = load_backbone("mini")
    context = PromptContext(mini, NAMES, generator=torch.Generator().manual_seed(0))
    context.packed, context.tower  # made once, before the first step
    width, local = 128, torch.randn(8, 64, 128)
    batch = torch.randn(8, width), local if method == "locoop" else None, torch.arange(8) % 4
    optimizer = torch.optim.SGD([context.vectors], lr=0.1, momentum=0.9)

    def loss_of(batch):
        logits, local_logits, labels = _batch_logits(context, batch, 100.0)
        if method == "coop":
            return coop_terms(logits, None, labels)
        return watched_terms(logits, local_logits, labels, top_k=2)

    real = loop._one_step(optimizer, batch, loss_of)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        told = loop._one_step(optimizer, batch, loss_of)
    assert told.keys() == real.keys()
    assert all(isinstance(value, fake_tensor.FakeTensor) for value in told.values())


def _step_of(monkeypatch, module, call):
    "What `train` is given by a method: (optimizer, batches, loss_of)."
    caught = {}

    def catch(optimizer, rates, batches, loss_of, **_):
        caught.update(optimizer=optimizer, batch=next(iter(batches(0))), loss_of=loss_of)
        raise InterruptedError

    monkeypatch.setattr(module, "train", catch)
    with pytest.raises(InterruptedError):
        call()
    return caught


def _runs_on_fakes(caught):
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        told = loop._one_step(caught["optimizer"], caught["batch"], caught["loss_of"])
    assert "loss" in told and all(isinstance(v, fake_tensor.FakeTensor) for v in told.values())


def _unit(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=-1, keepdim=True)


def test_hftt(monkeypatch):
    words, start = _unit(40, 8, seed=1), [_unit(3, 8, seed=2), _unit(5, 8, seed=3)]
    call = lambda: hftt.train_outliers(_unit(4, 8), _unit(9, 8), words, start, lambda _: range(40))
    _runs_on_fakes(_step_of(monkeypatch, hftt, call))


@pytest.mark.parametrize("loss", ["uniform", "energy_margin", "energy_logistic"])
def test_textual_outliers(monkeypatch, loss):
    images, labels, texts = _unit(40, 8, seed=1), torch.arange(40) % 4, _unit(30, 8, seed=2)
    start = [heads.make_head("linear", 8, 4, generator=torch.Generator().manual_seed(0))]
    model = (torch.ones(1, 4), torch.ones(1, 4), torch.ones(1, 2, 1), torch.zeros(1, 2))
    order = lambda _: (torch.arange(40), torch.arange(30))
    draw = lambda *_: (torch.zeros(30, 8), None)
    settings = heads.TOESettings(loss=loss)
    logistic = model if loss == "energy_logistic" else None
    call = lambda: heads.train_head(
        images, labels, texts, start, order, settings, draw=draw, noisy=False, logistic=logistic
    )
    _runs_on_fakes(_step_of(monkeypatch, heads, call))


def test_forgetting():
    P, hidden = _unit(8, 6, seed=1), _unit(3, 8, seed=2)
    problem = forget.Problem(hidden, _unit(3, 6, seed=3), _unit(5, 8, seed=4))
    settings = forget.ForgetSettings(steps=2, rank=2)
    part = forget.residuals(P, problem)
    batch = forget._Batch([part], [forget._weights(problem, settings)], settings)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        losses, norms, slopes = batch.losses(torch.zeros(1, 2, 8), torch.zeros(1, 6, 2))
    assert all(isinstance(t, fake_tensor.FakeTensor) for t in (losses, norms, *slopes))
