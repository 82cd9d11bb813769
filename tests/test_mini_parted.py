"""Version 3 of the mini world: no drawing, and nothing like it, is shown on two sides; proven from
the tables that ship."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from oodnb import mini
from oodnb.ground.places import shipped
from oodnb.miniworld.backgrounds import SCENES, TEXTURES, background
from oodnb.miniworld.parted import EMOJI, HELD, TEST_PICTURES, near_twins

OUT = ("few_shot", "validation", "test")
# benchmark things that are drawn so much alike that the fence was raised before there were enough
# families: their pairs below the raised fence are not kept apart
PLAIN = set(
    "alarm clock,baseball,book,bread,candle,cupcake,ice cream,key,light bulb,onion,panda,swan,"
    "volleyball".split(",")
)


@cache
def drawings():
    return mini.load_drawings()


@cache
def twins():
    return pd.read_csv(shipped("mini3", "twins.csv"))


def leaks(table, pairs):
    """Near twins on two sides; what is shown nowhere counts for none."""
    side, fence = table.side.to_numpy(), table.fence.to_numpy()
    close = pairs[pairs.likeness > fence[pairs.a]]
    apart = side[close.a] != side[close.b]
    shown = (side[close.a] != "spare") & (side[close.b] != "spare")
    return close[apart & shown]


def split_families(table):
    """Families on two sides."""
    shown = table[table.side != "spare"]
    sides = shown.groupby(["concept", "family"]).side.nunique()
    return sides[sides > 1]


def test_every_sprite_has_its_row():
    world, table = mini.load_world(version=3), drawings()
    assert (world.artists == table.artist).all()
    names = np.array([concept.name for concept in world.concepts])
    assert (names[world.shows] == table.concept).all()
    assert not table.duplicated(["concept", "artist", "icon"]).any()
    roles = {concept.name: concept.role for concept in world.concepts}
    assert (table.concept.map(roles) == table.role).all()


def test_no_family_is_on_two_sides():
    assert split_families(drawings()).empty


def test_no_near_twin_is_on_two_sides():
    assert leaks(drawings(), twins()).empty
    raised = drawings()[drawings().fence > 0.8]
    assert set(raised.concept[raised.role.isin(TEST_PICTURES)]) == PLAIN


def test_a_drawing_on_a_wrong_side_is_found():
    table = drawings().copy()
    pair = twins()[twins().likeness > 0.95].iloc[0]
    table.loc[pair.a, "side"], table.loc[pair.b, "side"] = "test", "pre_training"
    assert len(leaks(table, twins())) >= 1 and len(split_families(table)) >= 1


def test_the_second_rendering_of_a_design_goes_where_the_first_one_goes():
    held = drawings()[drawings().artist.isin(HELD)]
    assert (held.groupby("concept").family.nunique() == 1).all()
    assert "pre_training" not in set(held.side)


def test_the_listed_twins_are_those_of_the_sprites():
    table, world = drawings(), mini.load_world(version=3)
    for name in list(dict.fromkeys(table.concept))[::25] + ["watch", "volleyball"]:
        rows = table.index[table.concept == name].to_numpy()
        found = near_twins(world.sprites[rows], [name] * len(rows))
        listed = twins()[twins().a.isin(rows)]
        assert rows[found[["a", "b"]]].tolist() == listed[["a", "b"]].to_numpy().tolist(), name
        assert np.allclose(found.likeness, listed.likeness, atol=2e-4), name


def test_every_class_is_on_every_side_and_the_web_has_seen_everything():
    table = drawings()
    things = table[table.role == "id"].groupby("side").concept.nunique()
    assert [things[side] for side in (*OUT, "pre_training")] == [100] * 4
    assert table[table.side == "pre_training"].concept.nunique() == 849
    assert (things["clip_art"], things["sketch"]) == (80, 92)


@pytest.mark.parametrize("side", OUT)
def test_styles_are_mixed_on_every_side(side):
    own = drawings()[(drawings().role == "id") & (drawings().side == side)]
    shares = own.drop_duplicates(["concept", "artist"]).artist.value_counts(normalize=True)
    assert set(shares.index) <= set(EMOJI) and len(shares) >= 7 and shares.max() < 0.42


def test_out_of_distribution_pictures_have_the_id_tests_styles():
    shown = drawings()[drawings().pictures > 0]
    assert set(shown.side) == {"test"}
    counts = shown.assign(artist=shown.artist.replace(HELD[1], HELD[0])).pivot_table(
        index="artist", columns="role", values="pictures", aggfunc="sum"
    )
    share = counts["id"] / counts["id"].sum()
    for role in ("near", "plant", "place"):
        assert (counts[role] - share * counts[role].sum()).abs().max() < 1, role
    per_class = shown.groupby(["role", "concept"]).pictures.sum()
    assert all((per_class[role] == per).all() for role, per in TEST_PICTURES.items())


def parted():
    return [s for s in mini.PARTED_SPLITS.values() if s.sides and s.role != "web"]


def test_pictures_show_the_drawings_of_their_side():
    table, shown = drawings(), {}
    for recipe in parted():
        sprites = mini._shown(recipe, mini._classes(recipe)[1])
        assert len(sprites) == recipe.per * len(mini._classes(recipe)[0])
        assert set(table.side[sprites]) == set(recipe.sides)
        shown.setdefault(recipe.sides, set()).update(sprites.tolist())
        if recipe.sides == ("test",):
            assert (np.bincount(sprites, minlength=len(table)) > 0).sum() == (
                (table.role == recipe.role) & (table.pictures > 0)
            ).sum()
    web = mini.web_drawers(mini.load_world(version=3), version=3)
    shown["web"] = {sprite for hands in web.values() for own in hands for sprite in own}
    few_shot, train = shown.pop(("few_shot",)), shown.pop(("few_shot", "train"))
    assert few_shot < train, "few-shot drawings are training drawings, as on ImageNet"
    sets = [*shown.values(), train]
    assert len(set().union(*sets)) == sum(map(len, sets))


def test_what_stands_beside_is_parted_too():
    by_side = {}
    for recipe in parted():
        side = mini._COMPANY.get(recipe.sides[0], "test")
        company = mini._company_drawers(recipe)
        own = {sprite for hands in company.values() for one in hands for sprite in one}
        assert set(drawings().role[list(own)]) == {"web"} and len(company) >= 50
        by_side[side] = own
    assert set(by_side) == set(OUT)
    assert len(set().union(*by_side.values())) == sum(map(len, by_side.values()))


def test_every_set_has_backgrounds_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(mini, "background_bank", lambda n, seed: asked.append((n, seed)))
    for recipe in mini.PARTED_SPLITS.values():
        mini._parted_means(recipe)
    seeds = [seed for _, seed in asked] + [mini.PRETRAINING_SEED]
    assert len(set(seeds)) == len(seeds) == len(mini.PARTED_SPLITS) + 1
    assert not {0, 1} & set(seeds), "nor those of version 2"
    names = [(1, k, name) for k, name in enumerate(TEXTURES)]
    names += [(2, k, name) for k, name in enumerate(SCENES)]
    painted = {
        background(name, [seed, kind, k, 0]).tobytes() for seed in seeds for kind, k, name in names
    }
    assert len(painted) == len(seeds) * len(names)


def test_version_2_is_what_it_was():
    assert mini.load_concepts() == mini.load_concepts(version=2)
    assert mini.PAINTED_SPLITS["mini", "test"] == mini.PaintedSplit(
        "id", "fluent-emoji", 20, 1, "ImageNet-1k"
    )
    assert (
        mini.load_split("mini-near").fingerprint
        == mini.load_split("mini-near", version=2).fingerprint
    )
    changed = {
        concept.name: concept.role
        for concept, old in zip(mini.load_concepts(3), mini.load_concepts(), strict=True)
        if concept.role != old.role
    }
    assert changed == {"zebra": "near", "giraffe": "near", "ladybug": "id", "lizard": "id"}


def test_there_are_two_versions():
    for call in (mini.load_world, mini.load_concepts, mini.list_sets):
        with pytest.raises(ValueError, match="no version 4"):
            call(version=4)
    with pytest.raises(ValueError, match="mini-clip-art: test"):
        mini.load_split("mini-clipart", version=3)
    with pytest.raises(ValueError, match="no split 'train'"):
        mini.load_split("mini", "train")


def test_no_held_out_drawing_is_black():
    """A renderer that misses a colour paints black; one emoji did."""
    table, sprites = drawings(), mini.load_world(version=3).sprites
    held = table.index[table.side.isin(OUT)].to_numpy()
    colours, alpha = sprites[held, :3].float().mean(1), sprites[held, 3].float()
    light = (colours * alpha).sum((1, 2)) / alpha.sum((1, 2))
    assert table.concept[held[(light < 14).numpy()]].tolist() == []
