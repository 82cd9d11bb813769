"""The fast tokenizer gives the ids of open_clip's own: on word lists, on every short string of
ASCII, and on what people have broken tokenizers with."""

import functools
import itertools
import random
import sys

import open_clip
import pytest
import torch

from oodnb.models import backbone as towers
from oodnb.models.backbone import tiny_clip, token_rows
from oodnb.models.fast_tokens import _TWINS, fast_rows, is_plain, twin_of

NASTY = [
    "",
    " ",
    "   two   spaces ",
    "'",
    "''s",
    "it's",
    "IT'S 'RE 've'll 'd'm't",
    "'S",
    "don't!!",
    "x" * 9000,
    "very " * 500,
    "1234567890" * 40,
    "a1b2c3",
    "!?" * 200,
    "...---...",
    "a_b_c",
    "<|>",
    "<start_of_text>",
    "a <End_Of_Text> b",
    "< start_of_text >",
    "&amp;",
    "&amp;amp;",
    "AT&T",
    "&lt;b&gt;",
    "&#39;",
    "&nbsp;",
    "R&D;",
    "tab\tand\nline\r\nfeed",
    "\x00\x07\x1b[31mred\x1b[0m",
    "\x7f",
    "\x85",
    "\u2028",
    "café",
    "cafe\u0301",
    "Ångström",
    "naïve façade",
    "schÃ¶n",
    "â€œquotedâ€\x9d",
    "“curly” ‘quotes’",
    "ﬁne ﬂow",
    "ＦＵＬＬ width",
    "İstanbul",
    "ISTANBUL",
    "ſharp",
    "ß",
    "ﬀ",
    "Σίσυφος ΣΊΣΥΦΟΣ",
    "русский текст",
    "中文字符",
    "日本語",
    "한국어",
    "العربية",
    "עברית",
    "हिन्दी",
    "👍",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈 flag",
    "½ ² ③ Ⅷ ٣",
    "a\u200bb",
    "\ufeffbom",
    "\u00ad",
    "\ud83d",
    "a photo of a {}",
    "C:\\path\\file",
    "https://example.org/?q=1%20&x=y",
    "e=mc^2",
    "~tilde~",
    "`code`",
    "$5.00",
]


@pytest.fixture(scope="module")
def slow():
    return open_clip.SimpleTokenizer()


@pytest.fixture
def twin(slow):
    pytest.importorskip("tokenizers")
    found = twin_of(slow)
    assert found is not None
    return found


@functools.cache
def _words():
    "Some ten thousand words: the names of classes, and every tenth entry of the merges."
    vocabulary = [word.removesuffix("</w>") for word in open_clip.SimpleTokenizer().encoder]
    return [*open_clip.IMAGENET_CLASSNAMES, *vocabulary[::10]]


def test_words(slow, twin):
    words = _words()
    assert sum(map(is_plain, words)) > 5000
    assert torch.equal(fast_rows(slow, words), slow(words))


def test_every_pair_of_printable_characters(slow, twin):
    pairs = ["".join(pair) for pair in itertools.product(map(chr, range(32, 127, 1)), repeat=2)]
    assert torch.equal(fast_rows(slow, pairs), slow(pairs))


def test_random_texts(slow, twin):
    chance = random.Random(0)
    letters = "abcdefgstvl'SDTRELVM  0123456789.,!-_<>/%#\"()[]{}@:;"
    texts = ["".join(chance.choices(letters, k=chance.randrange(120))) for _ in range(2000)]
    texts += [" ".join(chance.choices(_words()[:1000], k=chance.randrange(40))) for _ in range(500)]
    assert torch.equal(fast_rows(slow, texts), slow(texts))


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty(text, slow, twin):
    try:
        wanted = slow([text])
    except UnicodeEncodeError:  # half a surrogate pair is no text for open_clip either
        with pytest.raises(UnicodeEncodeError):
            fast_rows(slow, [text])
        return
    assert torch.equal(fast_rows(slow, [text]), wanted)
    assert torch.equal(fast_rows(slow, ["a plain one", text, "another"])[1:2], wanted)


def test_other_lengths(twin):
    for length in (8, 77, 300):
        other = open_clip.SimpleTokenizer(context_length=length)
        texts = ["a dog", "a very long text about " + "things " * 100]
        assert torch.equal(fast_rows(other, texts), other(texts))


@pytest.mark.parametrize(
    "options",
    [
        {"clean": "whitespace"},
        {"clean": "canonicalize"},
        {"additional_special_tokens": ["<photo>"]},
        {"reduction_mask": "shuffle"},
    ],
)
def test_tokenizers_that_differ_have_no_twin(options):
    other = open_clip.SimpleTokenizer(**options)
    assert twin_of(other) is None
    if "reduction_mask" not in options:
        texts = ["A Photo, of: <photo> a DOG", "b"]
        assert torch.equal(fast_rows(other, texts), other(texts))


def test_without_the_library_open_clip_does_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    own = open_clip.SimpleTokenizer()
    assert twin_of(own) is None and _TWINS[own] is None
    assert torch.equal(fast_rows(own, ["a dog", "café"]), own(["a dog", "café"]))


def test_long_lists_go_the_fast_way(monkeypatch, twin):
    tiny, asked = tiny_clip(), []
    texts = [f"number {i % 90}" for i in range(100)]
    plain = token_rows(tiny.tokenizer, texts)
    monkeypatch.setattr(towers, "_MANY", 100)
    monkeypatch.setattr(towers, "fast_rows", lambda t, x: asked.append(len(x)) or fast_rows(t, x))
    assert torch.equal(token_rows(tiny.tokenizer, texts), plain) and asked == [90]
    assert torch.equal(token_rows(tiny.tokenizer, texts[:99]), plain[:99]) and asked == [90]
