"""The detectors that pytorch-ood has, too, on the same features: the same numbers, or the reason.

Its scores are higher for the unknown, so each is compared with its sign turned."""

import numpy as np
import pytest
import torch
from pytorch_ood import detector as other
from reference import close

from oodnb.backbones import load_backbone
from oodnb.detectors import TextDetector
from oodnb.features import Features
from oodnb.methods.knn import fit_knn
from oodnb.methods.mahalanobis import fit_mahalanobis
from oodnb.methods.react import fit_react
from oodnb.methods.vim import fit_vim
from oodnb.scores import entropy

WIDTH, CLASSES = 16, 5
NAMES = ["cat", "dog", "bird", "fish", "frog"]


def features(count, seed, backbone=""):
    """Rows that lie about five centres, of very different lengths."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    rows = centres[labels] + 0.4 * torch.randn(count, WIDTH, generator=chance)
    rows = rows * (0.5 + torch.rand(count, 1, generator=chance))
    ids = [str(i) for i in range(count)]
    return Features(rows, labels.numpy(), ids, "made", "", backbone, class_names=NAMES)


KNOWN, SEEN = features(80, 1), features(33, 2)
TEXTS = torch.nn.functional.normalize(
    torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(3)), dim=1
)


class Eye:
    """A backbone whose texts are TEXTS."""

    name, fingerprint, logit_scale, embed_dim, grid = "eye", "", 20.0, WIDTH, None

    def encode_texts(self, texts):
        return TEXTS.clone()


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("k", [1, 7, 80])
def test_knn(k):
    theirs = other.KNN(None, k=k).fit_features(KNOWN.image_features, torch.tensor(KNOWN.labels))
    # cosines in float32 here, differences of coordinates there
    close(fit_knn(KNOWN, k).score(SEEN), -theirs.predict_features(SEEN.image_features), atol=2e-6)


@pytest.mark.parametrize("at_unit_length", [True, False])
def test_mahalanobis(at_unit_length):
    """They invert the sum of squares and not the covariance, which is N - C times smaller, and add
    a millionth to its diagonal. So their distances are ours over N - C, at a ridge of that."""
    freedom = len(KNOWN) - CLASSES
    known, seen = KNOWN.image_features, SEEN.image_features
    if at_unit_length:
        known, seen = unit(known), unit(seen)
    theirs = other.Mahalanobis(None).fit_features(known, torch.tensor(KNOWN.labels))
    detector = fit_mahalanobis(KNOWN, normalize=at_unit_length, ridge=1e-6 / freedom)
    ours = detector.score(SEEN)
    close(ours, -freedom * theirs.predict_features(seen), rtol=1e-4)
    # a millionth moves nothing, and a factor no order
    plain = fit_mahalanobis(KNOWN, normalize=at_unit_length).score(SEEN)
    assert plain.argsort().tolist() == ours.argsort().tolist()


def test_mcm_means_are_another_method():
    theirs = other.Mahalanobis(None)
    theirs.fit_features(unit(KNOWN.image_features), torch.tensor(KNOWN.labels))
    ours = fit_mahalanobis(KNOWN, "mcm").score(SEEN)
    order = (-theirs.predict_features(unit(SEEN.image_features))).argsort()
    assert ours.argsort().tolist() != order.tolist()


@pytest.mark.parametrize("dimensions", [0, 4, 15])
def test_vim(dimensions):
    """A linear head without bias: the class texts times the scale, on features of length 1."""
    eye = Eye()
    theirs = other.ViM(None, dimensions, eye.logit_scale * TEXTS, torch.zeros(CLASSES))
    theirs.fit_features(unit(KNOWN.image_features), torch.tensor(KNOWN.labels))
    ours = fit_vim(eye, NAMES, KNOWN, dimensions)
    close(ours.alpha, theirs.alpha, rtol=1e-4)
    want = -theirs.predict_features(unit(SEEN.image_features))
    close(ours.score(SEEN), want, atol=1e-4 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("percentile", [50, 90, 100])
def test_react(percentile):
    """Cut are the features as they come, and the head is cosines: their head is ours."""
    eye = Eye()
    theirs = other.ReAct(
        None, lambda rows: eye.logit_scale * unit(rows) @ TEXTS.T, percentile=percentile / 100
    )
    theirs.fit_feature_maps(KNOWN.image_features, torch.tensor(KNOWN.labels))
    ours = fit_react(eye, NAMES, KNOWN, percentile)
    close(ours.cut, theirs.threshold, rtol=1e-6)
    close(ours.score(SEEN), -theirs.predict_feature_maps(SEEN.image_features), rtol=1e-5)


LOGITS = {
    "max_logit": other.MaxLogit,
    "energy": other.EnergyBased,
    "msp": other.MaxSoftmax,
    "entropy": other.Entropy,
}


@pytest.mark.parametrize("kind", LOGITS)
def test_scores_of_logits(kind):
    """At a scale of 5 no probability is below a ten-millionth, where their entropy cuts."""
    logits = 5 * unit(SEEN.image_features.double()) @ TEXTS.double().T
    assert logits.softmax(1).min() > 1e-7
    ours = TextDetector(kind, kind, TEXTS, logit_scale=5.0).score(SEEN)
    close(ours, -LOGITS[kind](None).predict_logits(logits), atol=1e-5)


def test_their_entropy_cuts_small_probabilities_and_ours_does_not():
    logits = torch.tensor([[0.0, -40.0, -60.0]], dtype=torch.float64)
    exact = float((logits.softmax(1) * logits.log_softmax(1)).sum())
    close(entropy(logits)[0], exact, rtol=1e-12)
    theirs = -float(other.Entropy(None).predict_logits(logits)[0])
    assert theirs == pytest.approx(2 * 1e-7 * np.log(1e-7), rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_mcm(temperature):
    theirs = other.MCM(None, TEXTS, temperature).predict_features(SEEN.image_features)
    # they take the softmax in float32
    ours = TextDetector("mcm", "mcm", TEXTS, temperature=temperature).score(SEEN)
    close(ours, -theirs, atol=2e-5)


def test_on_the_mini_world_too():
    """Two hundred pictures' features of a small tower, k-NN and Mahalanobis."""
    clip = load_backbone("tiny-vit", device="cpu")
    chance = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 120, 3, 32, 32, generator=chance)
    labels = np.arange(120) % 3
    known, seen = (
        Features(
            clip.encode_images(part),
            labels,
            [str(i) for i in range(120)],
            "noise",
            "",
            clip.fingerprint,
            class_names=NAMES[:3],
        )
        for part in pixels
    )
    theirs = other.KNN(None, k=5).fit_features(known.image_features, torch.tensor(labels))
    close(fit_knn(known, 5).score(seen), -theirs.predict_features(seen.image_features), atol=1e-5)
