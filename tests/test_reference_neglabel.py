"""NegLabel against the formulas of its paper, written out word by word and group by group."""

import math

import numpy as np
import pytest
import torch
from reference import close

from oodnb.features import Features
from oodnb.methods.neglabel import (
    NegLabelSettings,
    distant_words,
    neglabel,
    neglabel_log_odds,
)

NOUNS = [f"noun{i}" for i in range(23)] + ["class 0"]
ADJECTIVES = [f"adjective{i}" for i in range(14)] + ["noun3"]
NAMES = ["class 0", "class 1", "class 2", "class 3"]


def direction(text):
    rng = np.random.default_rng(list(text.encode()))
    return torch.tensor(rng.normal(size=12), dtype=torch.float32)


class Eye:
    """A text tower without meaning: each text has a direction of its own."""

    name, fingerprint, precision, embed_dim = "eye", "eye-0", "fp32", 12

    def encode_texts(self, texts, batch_size=None):
        return torch.stack([direction(text) for text in texts])


def cosine(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def kept_by_hand(words, template, names, share, percentile):
    """The words with the smallest 95th percentile of their cosines with the classes."""
    classes = [direction(f"The nice {name}.") for name in names]
    close_to = {
        word: np.percentile(
            [cosine(direction(template.replace("{}", word)), c) for c in classes], percentile
        )
        for word in words
    }
    order = sorted(words, key=close_to.get)
    return set(order[: max(1, round(share * len(words)))])


@pytest.mark.parametrize("share, quantile", [(0.15, 0.05), (0.5, 0.05), (0.5, 0.4)])
def test_nouns_and_adjectives_are_chosen_apart(share, quantile):
    settings = NegLabelSettings(keep=share, quantile=quantile)
    got = neglabel(
        Eye(), NAMES, NOUNS, settings, adjectives=ADJECTIVES, cache=False, progress=False
    )
    by_hand = 100 * (1 - quantile)
    nouns = kept_by_hand(NOUNS[:-1], "The nice {}.", NAMES, share, by_hand)
    adjectives = kept_by_hand(ADJECTIVES[:-1], "This is a {} photo", NAMES, share, by_hand)
    assert set(got.words) == nouns | adjectives and len(got.words) == len(nouns) + len(adjectives)
    for word, row in zip(got.words, got.negatives):
        sentence = f"The nice {word}." if word in nouns else f"This is a {word} photo"
        assert cosine(row, direction(sentence)) == pytest.approx(1)


@pytest.mark.parametrize("groups", [1, 3, 5, 17])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_score_of_groups_of_one_size(groups, temperature):
    """17 words in 3 groups of 5: the last two stand in none."""
    rng = np.random.default_rng(0)
    sims, negative = rng.uniform(0.1, 0.3, (6, 4)), rng.uniform(0.1, 0.3, (6, 17))
    size = 17 // groups
    for i in range(6):
        known = sum(math.exp(s / temperature) for s in sims[i])
        shares = []
        for g in range(groups):
            words = negative[i, g * size : (g + 1) * size]
            unknown = sum(math.exp(s / temperature) for s in words)
            shares.append(known / (known + unknown))
        mean = sum(shares) / groups
        got = neglabel_log_odds(
            torch.tensor(sims[i : i + 1]), torch.tensor(negative[i : i + 1]), groups, temperature
        )
        assert float(got.sigmoid()[0]) == pytest.approx(mean, rel=1e-9)
        assert float(got[0]) == pytest.approx(math.log(mean / (1 - mean)), rel=1e-6)


def test_detector_end_to_end():
    settings = NegLabelSettings(keep=0.5, groups=4, temperature=0.1)
    detector = neglabel(
        Eye(), NAMES, NOUNS, settings, adjectives=ADJECTIVES, cache=False, progress=False
    )
    rows = torch.stack([direction(f"picture {i}") for i in range(7)])
    pictures = Features(rows, np.full(7, -1), list("abcdefg"), "pictures", "", "eye-0")
    sims = [[cosine(row, direction(f"The nice {n}.")) for n in NAMES] for row in rows]
    negative = [[cosine(row, other) for other in detector.negatives] for row in rows]
    want = neglabel_log_odds(torch.tensor(sims), torch.tensor(negative), 4, 0.1)
    close(detector.score(pictures), want, atol=1e-5)


def test_distance_is_to_the_near_classes():
    """Twenty classes: one of them near the first word, all at a middle distance of the second."""
    classes = torch.eye(20, dtype=torch.float64)
    near_one = torch.full((20,), 0.1, dtype=torch.float64)
    near_one[4] = 0.9
    near_two = near_one.clone()
    near_two[7] = 0.9
    middle = torch.ones(20, dtype=torch.float64)
    words = torch.stack([near_one, near_two, middle])
    # one odd class among twenty is looked past, two are not
    assert distant_words(words, classes, 3).tolist() == [0, 2, 1]
    assert distant_words(words, classes, 3, quantile=0).tolist() == [2, 1, 0]
