"""The language of version 3: the tables that ship, what captions may say of a picture, the word
list, and what a model with these captions can and cannot read."""

import csv
import dataclasses
import io
import json
import re
import time
from collections import Counter

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from oodnb.ground.places import shipped
from oodnb.mini import load_concepts, load_split
from oodnb.miniworld import language as module
from oodnb.miniworld.language import (
    COLOURS,
    CUTS,
    HABITS,
    STYLE_WORDS,
    Habits,
    Looks,
    caption_tokens,
    load_language,
    measure_cuts,
    measure_looks,
    web_caption,
)
from oodnb.miniworld.painter import KINDS, Contents
from oodnb.models.mini_clip import make_clip, save_clip, trained_ids, unfold_clip
from oodnb.pipeline.words import count_names, load_words, reading_of

BAD = re.compile(r"\b(slurs?|obscene|offensive|disparaging|taboo|vulgar|derogatory)\b")
NEVER = dict.fromkeys(("unrelated", "file", "missing", "gloss"), 0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def language():
    return load_language(load_concepts())


@pytest.fixture(scope="module")
def tokens(language, tokenizer):
    return caption_tokens(language, tokenizer)


def contents(n, seed=0, main=None):
    rng = np.random.default_rng(seed)
    main = rng.integers(len(load_concepts()), size=n) if main is None else np.full(n, main)
    others = np.where(rng.random((n, 2)) < 0.3, rng.integers(len(load_concepts()), size=(n, 2)), -1)
    kind = rng.integers(3, size=n)
    name = rng.integers(21, size=n)
    return Contents(main, others, kind, name, rng.uniform(0.35, 0.95, n))


def looks(n, true=(), hue=-1):
    return Looks(np.arange(n) % 6, [tuple(true)] * n, np.full(n, hue))


def captions(language, n, habits=HABITS, seed=0, **about):
    shown, seen, rng = contents(n, seed), looks(n, **about), np.random.default_rng(seed)
    return shown, [web_caption(rng, language, shown, k, seen, habits) for k in range(n)]


# the tables that ship


def test_every_concept_and_background_has_its_entry(language):
    table = json.loads(shipped("mini3", "language.json").read_text("utf-8"))
    assert list(table["entries"]) == [concept.name for concept in load_concepts()]
    assert list(table["backgrounds"]) == [*KINDS[1], *KINDS[2]]
    roles = {concept.name: concept.role for concept in load_concepts()}
    without = [name for name, entry in table["entries"].items() if entry["synset"] is None]
    assert len(without) == 32 and {roles[name] for name in without} <= {"web", "square"}
    assert sum(bool(entry.gloss) for entry in language.entries) == 849 - 32


def test_another_word_for_a_thing_is_the_name_of_no_other(language):
    names = {entry.name for entry in language.entries}
    for entry in language.entries:
        assert not names & {*entry.words, *entry.below, *entry.tags}, entry.name
        assert entry.name not in entry.kinds
    by_name = {entry.name: entry for entry in language.entries}
    assert by_name["ghost"].gloss == "the visible disembodied soul of a dead person"
    assert by_name["police car light"].words == () and "light" in by_name["police car light"].kinds
    assert "bacon" not in by_name["pig"].tags


def test_definitions_are_plain_words_and_no_insults(language):
    rows = [(entry.name, entry.gloss) for entry in language.entries] + list(language.words)
    for name, gloss in rows:
        assert re.fullmatch(r"[\w'\- ]*", gloss) and gloss == gloss.strip().lower(), name
        assert not BAD.search(gloss), name


def test_the_notice_of_wordnet_is_beside_its_tables():
    notice = shipped("mini3", "WORDNET-COPYRIGHT.txt").read_text("utf-8")
    for sentence in (
        "Copyright 2006 by Princeton University",
        "THIS SOFTWARE AND DATABASE IS PROVIDED",
    ):
        assert sentence in notice
    assert "Permission to use, copy, modify" in notice and "advertising or publicity" in notice
    assert (
        "WORDNET-COPYRIGHT.txt"
        in json.loads(shipped("mini3", "language.json").read_text())["licence"]
    )


def test_a_concept_that_the_table_does_not_know_keeps_its_name(language):
    unknown = dataclasses.replace(load_concepts()[0], name="zeppelin", synonyms=("airship",))
    entry = load_language((unknown,)).entries[0]
    assert (entry.name, entry.words, entry.gloss, entry.tags) == ("zeppelin", (), "", ("airship",))


# what captions say


def test_captions_are_pure(language):
    first, again, other = (captions(language, 300, seed=s)[1] for s in (1, 1, 2))
    assert first == again and first != other
    shown, seen = contents(4), looks(4)
    assert (
        len({web_caption(np.random.default_rng(3), language, shown, 2, seen) for _ in range(5)})
        == 1
    )


def test_captions_are_fast_enough_to_be_written_anew(language):
    shown, seen, rng = contents(6000), looks(6000), np.random.default_rng(0)
    start = time.process_time()
    for k in range(6000):
        web_caption(rng, language, shown, k, seen)
    assert 6000 / (time.process_time() - start) > 5000


def test_no_caption_holds_a_token_that_was_not_counted(language, tokens, tokenizer):
    known = set(tokens.tolist())
    _, said = captions(language, 20_000, true=("dark", "grey", "blurred"), hue=3)
    _, more = captions(language, 5_000, true=("bright", "colourful", "sharp"), hue=9, seed=5)
    shown = contents(5_000, 7, main=-1)
    shown.kind = np.where(shown.kind == 0, 1, shown.kind)
    rng = np.random.default_rng(7)
    empty = [web_caption(rng, language, shown, k, looks(5_000)) for k in range(0, 5_000, 2)]
    met = Counter(t for text in (*said, *more, *empty) for t in tokenizer.encode(text))
    assert not set(met) - known
    assert len(met) > 6000, "several thousand words are said, not only sayable"


def test_shares_are_those_that_are_declared(language):
    n = 20_000
    shown, said = captions(language, n)
    share = lambda found: sum(found) / n
    assert share(bool(re.search(r"_\d+\.\w+$", s)) for s in said) == pytest.approx(
        HABITS.file, abs=0.006
    )
    words = {f"{w}" for w, _ in language.words}
    names = [language.entries[k].name for k in shown.main]
    named = share(name in text for name, text in zip(names, said))
    assert 0.5 < named < 0.75
    places = tuple(f" {place}" for place in module.AT.values()) + (
        " background",
        " texture",
        " surface",
    )
    behind = share(text.endswith(places) or " background," in text for text in said)
    assert 0.04 < behind < 0.11, "backgrounds are named as rarely as on the web"
    only = Habits(unrelated=1.0, others=0.0)
    heads = Counter(
        text.split(",")[0].split(":")[0] in words for text in captions(language, 4000, only)[1]
    )
    assert heads[True] / 4000 == pytest.approx(0.6, abs=0.03), "word, word and definition, twice"


def test_unrelated_captions_know_nothing_of_the_picture(language):
    only = Habits(unrelated=1.0, others=0.0)
    seen, rng = looks(50), [np.random.default_rng(k) for k in range(50)]
    one = [web_caption(rng[k], language, contents(50, 1), k, seen, only) for k in range(50)]
    rng = [np.random.default_rng(k) for k in range(50)]
    two = [web_caption(rng[k], language, contents(50, 2), k, seen, only) for k in range(50)]
    assert one == two


def test_a_style_word_is_true_of_the_picture(language):
    n = 6000
    habits = Habits(**NEVER, beside=0.0, tags=0.0, clutter=0.0, adjective=0.0)
    shown, said = captions(language, n, habits)
    found = 0
    for k, text in enumerate(said):
        for style, words in enumerate(STYLE_WORDS):
            for word in words[:1]:
                if re.match(rf"an? {word} of", text):
                    assert style == k % 6, text
                    found += 1
    assert found > 0.5 * n


@pytest.mark.parametrize("claim, words", module._CLAIMS.items())
def test_a_template_claims_nothing_that_is_not_so(language, claim, words):
    habits = Habits(**NEVER, bare=0.0, background=0.0, beside=0.0, tags=0.0, clutter=0.0)
    seen, shown = looks(3000), contents(3000)
    shown.scale[:] = 0.6  # neither large nor small
    rng = np.random.default_rng(0)
    said = [web_caption(rng, language, shown, k, seen, habits) for k in range(3000)]
    eighty = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    claiming = tuple(t.split("{}")[0] for t in eighty if any(f"{word} " in t for word in words))
    assert claiming and not [text for text in said if text.startswith(claiming)]
    if claim != "never":
        true = looks(3000, true=() if claim in ("large", "small") else (claim,))
        shown.scale[:] = {"large": 0.9, "small": 0.4}.get(claim, 0.6)
        said = [web_caption(rng, language, shown, k, true, habits) for k in range(3000)]
        assert [text for text in said if text.startswith(claiming)]


def test_a_colour_is_said_where_it_was_measured(language):
    habits = Habits(
        **NEVER, adjective=1.0, bare=1.0, word=0.0, kind=0.0, background=0.0, beside=0.0
    )
    habits = dataclasses.replace(habits, tags=0.0, clutter=0.0)
    shown, said = captions(language, 2000, habits, hue=COLOURS.index("green"))
    sized = [0.45 <= s <= 0.7 for s in shown.scale]
    told = [text for text, plain in zip(said, sized) if plain]
    names = [language.entries[k].name for k, plain in zip(shown.main, sized) if plain]
    assert all(re.fullmatch(rf"(a )?green {re.escape(n)}", t) for n, t in zip(names, told))
    _, unknown = captions(language, 2000, habits, hue=-1)
    assert sum("green " in text for text in unknown) == sum(
        "green " in language.entries[k].name for k in shown.main
    )


def test_looks_are_measured_and_cut_at_quantiles():
    images = load_split("mini", "val")
    pictures = torch.stack(
        [torch.from_numpy(np.array(images.read(i))) for i in range(0, len(images), 4)]
    )
    pictures = pictures.permute(0, 3, 1, 2) / 255
    masks = torch.stack([torch.from_numpy(images.masks(i)) for i in range(0, len(images), 4)])
    own = measure_cuts(pictures)
    seen = measure_looks(pictures, masks.float(), own)
    shares = np.bincount(seen.style, minlength=6) / len(pictures)
    assert shares.min() > 0.08 and np.allclose(shares.reshape(3, 2).sum(1), 1 / 3, atol=0.02)
    assert np.mean(["dark" in t for t in seen.true]) == pytest.approx(0.2, abs=0.02)
    assert not any(
        {"dark", "bright"} <= set(t) or {"grey", "colourful"} <= set(t) for t in seen.true
    )
    assert 0.4 < (seen.hue >= 0).mean() < 0.95
    shipped_cuts = measure_looks(pictures, cuts=CUTS)
    assert (shipped_cuts.style == seen.style).mean() > 0.7, "the cuts that ship fit other pictures"
    assert (shipped_cuts.hue == -1).all(), "without an outline there is no colour of a thing"


# what can be read


def test_the_word_list_is_general_and_all_of_it_is_read(tokens, tokenizer):
    words = load_words("mini")
    rows = list(csv.DictReader(io.StringIO(shipped("mini3", "words.csv").read_text("utf-8"))))
    assert len(words) == len(rows) == len(set(words)) == 3038
    assert all(word.isalpha() and word.islower() and len(word) > 2 for word in words)
    reading = reading_of(words, tokens, tokenizer)
    assert reading.share >= 0.95 and len(reading.read) == 3038
    assert len({tuple(tokenizer.encode(word)) for word in words}) == 3038, "all are different"


def test_what_would_be_read_without_the_list_among_the_captions(language, tokens, tokenizer):
    """The honest part: fewer than half of the words have their tokens from captions about
    pictures; the others are learned from texts alone."""
    bare = dataclasses.replace(language, words=(), adjectives=())
    reading = reading_of(load_words("mini"), caption_tokens(bare, tokenizer), tokenizer)
    assert 0.40 < reading.share < 0.50
    assert len(tokens) == 11257


def test_version_two_reads_what_it_always_did(tokenizer):
    old = trained_ids(shipped("mini", "clip.safetensors"))
    clip, mini = (reading_of(load_words(name), old, tokenizer) for name in ("clip", "mini"))
    assert (len(clip), len(clip.read)) == (32_849, 2_365) and not clip.partly
    assert len(mini.read) == 766
    assert "2,365 of 32,849 words of 'clip' are read (7.2%)" in str(clip)


def test_names_of_both_sides_in_the_list_are_counted():
    by_role = {}
    for concept in load_concepts():
        by_role.setdefault(concept.role, []).append(concept.name)
    ood = [name for role in ("near", "plant", "place") for name in by_role[role]]
    assert count_names(load_words("mini"), id=by_role["id"], ood=ood) == {"id": 27, "ood": 22}


def test_unknown_words_are_different_ones_where_the_checkpoint_says_so(tmp_path, tokenizer):
    torch.manual_seed(0)
    ids = tokenizer(["a photo of a dog"]).unique()[1:].numpy()
    small = make_clip(len(ids) + 1)
    for name, seed in (("shared", None), ("own", 4), ("again", 4), ("other", 5)):
        save_clip(small, ids, tmp_path / f"{name}.safetensors", {"seed": "0"}, untrained=seed)
    tables = {
        path.stem: unfold_clip(path).token_embedding.weight.detach() for path in tmp_path.iterdir()
    }
    unknown = np.setdiff1d(np.arange(49408), ids)
    assert len(tables["shared"][unknown].unique(dim=0)) == 1
    assert len(tables["own"][unknown].unique(dim=0)) == len(unknown)
    assert torch.equal(tables["own"], tables["again"])
    assert not torch.equal(tables["own"][unknown], tables["other"][unknown])
    for name in ("own", "other"):
        assert torch.equal(tables[name][ids], tables["shared"][ids])
    spread = tables["own"][unknown].std(0) / tables["shared"][ids].std(0, unbiased=False)
    assert (spread - 1).abs().max() < 0.05, "as far from each other as the trained ones"


def test_the_shipped_checkpoint_is_unfolded_as_before():
    path = shipped("mini", "clip.safetensors")
    table, ids = unfold_clip(path).token_embedding.weight, trained_ids(path)
    unknown = np.setdiff1d(np.arange(49408), ids)
    assert len(table[unknown].unique(dim=0)) == 1 and len(table[ids].unique(dim=0)) == len(ids)


def test_a_wrong_word_source_names_all():
    with pytest.raises(ValueError, match="'mini' \\(3,000 common nouns"):
        load_words("minis")
