"""Tokenising a long list of words: the fast program against open_clip's, same rows, in one run.

python benchmarks/tokens.py                 40,000 words and as many short sentences
python benchmarks/tokens.py --texts 370000  as many as HFTT's list has
"""

import argparse
import random

import open_clip
import torch

import harness
from oodnb.models.fast_tokens import fast_rows


def made_words(count):
    "Words of one to three pieces of CLIP's vocabulary, no two alike."
    chance = random.Random(0)
    pieces = [w.removesuffix("</w>") for w in open_clip.SimpleTokenizer().encoder]
    pieces = [w for w in pieces if w.isascii() and w.isalpha()]
    words = set()
    while len(words) < count:
        words.add("".join(chance.choices(pieces, k=chance.randrange(1, 4))))
    return sorted(words)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    harness.options_of(parser, repeats=3).add_argument("--texts", type=int, default=40_000)
    options = parser.parse_args(arguments)
    count = 3000 if options.small else options.texts
    words, pairs = made_words(count), []
    for name, texts in (("words", words), ("sentences", [f"a photo of a {w}." for w in words])):
        new = open_clip.SimpleTokenizer  # without what an earlier turn has remembered
        ours, theirs = (lambda: fast_rows(new(), texts)), (lambda: new()(texts))
        assert torch.equal(ours(), theirs())
        labels = ("tokenizers", "open_clip")
        named = f"{count:,} {name}"
        pairs.append(harness.compare(named, ours, theirs, options.repeats, warm=0, labels=labels))
    return harness.report("tokens", pairs, (), "cpu", options.json)


if __name__ == "__main__":
    main()
