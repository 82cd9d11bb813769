"""Everything that can be wrong with the inputs of class forgetting: each ends in an error that
names it, or is handled and said."""

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch

from oodnb.backbones import load_backbone
from oodnb.losses import forgetting_loss
from oodnb.methods.forget import (
    ForgetTask,
    forget_classes,
    forget_many,
    forget_problems,
    forget_target,
    load_preserve,
    preserve_names,
    solve_many,
)
from oodnb.forget.patch import (
    ProjectionPatch,
    adapted_rows,
    class_hidden,
    class_vectors,
    load_patch,
    merged,
    save_patch,
    text_hidden,
    text_projection,
)
from oodnb.forget.training import (
    ForgetSettings,
    Problem,
    closed_form,
    dead_zone,
    residuals,
    train_patches,
)
from forgetting import ANIMALS, cat_task, draw

QUICK = ForgetSettings(steps=4, max_trials=1, threshold=0.0)


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-vit", device="cpu")


def forget(tiny, names="cat", classes=ANIMALS, preserve=("wolf",), settings=QUICK, **more):
    return forget_classes(tiny, names, classes, preserve, settings, progress=False, **more)


# names


@pytest.mark.parametrize(
    "names, classes, message",
    [
        ("cta", ANIMALS, "There is no class 'cta'. Did you mean 'cat'"),
        (["cat", "cat"], ANIMALS, "forgotten twice"),
        ("cat", ["cat", "dog", "cat"], "2 classes are called 'cat'"),
        ([], ANIMALS, "No class is to be forgotten"),
        ("Cat", ANIMALS, "There is no class 'Cat'"),
        (["cat", " "], ANIMALS, "names holds ' '"),
        ("cat", ["cat", "_"], "class_names holds '_'"),
        ("cat", ["cat", 3], "class_names holds 3"),
        ("cat", "cat", "class_names is the single string"),
    ],
)
def test_names_that_choose_no_class(tiny, names, classes, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        forget(tiny, names, classes)


def test_a_name_that_does_not_fit(tiny):
    with pytest.raises(ValueError, match="longer than 75 tokens and do not fit"):
        forget(tiny, "very " * 80 + "cat", ["very " * 80 + "cat", "dog"])
    with pytest.raises(ValueError, match="longer than 75 tokens and do not fit"):
        forget(tiny, preserve=["word " * 100])


def test_the_separator_of_the_authors_lists_is_an_ordinary_letter(tiny, tmp_path):
    patch = forget(tiny, ["cat|dog", "fox"], ["cat|dog", "fox", "owl"])
    save_patch(tmp_path / "a.safetensors", patch)
    assert load_patch(tmp_path / "a.safetensors").names == ("cat|dog", "fox")


@pytest.mark.parametrize(
    "preserve, warned",
    [
        ("Cat", False),
        ("CAT ", True),
        ("toy_poodle", True),
        ("Toy  Poodle", True),
        ("TOY POODLE", False),
        ("wolf", False),
    ],
)
def test_names_that_differ_only_by_case_blanks_or_underscores(preserve, warned):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        task = ForgetTask(["cat", "toy poodle"], ["cat", "toy poodle", "dog"], [preserve])
    assert bool(said) == warned and (preserve.lower() in task.preserved) == (
        preserve not in ("Cat", "TOY POODLE")
    )


def test_lists_of_names():
    with pytest.raises(ValueError, match="preserve is the single string 'wolf'"):
        ForgetTask("cat", ANIMALS, "wolf")
    with pytest.raises(ValueError, match="no list of names to preserve for 'StanfordCats'"):
        load_preserve("StanfordCats")
    assert preserve_names([], ["cat"]) == [] and preserve_names(["Cat"], ["cat"]) == []


def test_nothing_to_preserve(tiny):
    for preserve in ([], ["CAT"]):
        patch = forget(
            tiny, preserve=preserve, settings=replace(QUICK, steps=50, forget_weight=5.0)
        )
        assert (
            patch.settings["preserved"] == 0
            and patch.update().isfinite().all()
            and patch.update().any()
        )
    assert forgetting_loss(
        torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(3, 4)
    ).isfinite()


# targets


def test_a_redraw_without_an_end():
    classes = 100 * draw(5, 8)
    with pytest.raises(
        RuntimeError,
        match=(
            r"After 30 draws .* forgotten class itself \(class 2\).*raise noise_std or "
            r"max_rounds"
        ),
    ):
        forget_target(
            classes[2],
            classes,
            [2],
            ForgetSettings(max_rounds=30),
            generator=torch.Generator().manual_seed(0),
        )
    with pytest.raises(RuntimeError, match="After 3 draws"):
        forget_target(classes[2], classes, [2], noises=draw(3, 1, 8))
    with pytest.raises(RuntimeError, match="After 0 draws"):
        forget_target(classes[2], classes, [2])
    assert (
        forget_target(
            classes[2],
            classes,
            [2],
            ForgetSettings(noise_std=500.0),
            generator=torch.Generator().manual_seed(0),
        )[1]
        > 0
    )


def test_a_single_class(tiny):
    with pytest.raises(ValueError, match="single class, which is nearest to every target"):
        forget(tiny, "cat", ["cat"])
    assert forget(tiny, "cat", ["cat"], target=torch.zeros(1, 32)).rank == 5


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_embeddings_without_direction(value):
    good, bad = draw(4, 8), draw(4, 8)
    bad[2] = value
    with pytest.raises(ValueError, match="class_embeddings is zero, NaN or infinite in row 2"):
        forget_target(good[0], bad, [1])
    with pytest.raises(ValueError, match="empty_embedding is zero, NaN or infinite in row 0"):
        forget_target(bad[2], good, [1])


@pytest.mark.parametrize("idx", [[], [4], [-1]])
def test_classes_that_are_not_there(idx):
    with pytest.raises(ValueError, match="there are 4 classes, 0 to 3"):
        forget_target(draw(8), draw(4, 8), idx)


# numbers


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("rank", 0, "from 1 up; 5 is the default"),
        ("rank", 2.5, "whole number"),
        ("rank", True, "whole number"),
        ("alpha", 0, "above 0"),
        ("alpha", math.nan, "above 0"),
        ("lr", -1, "above 0"),
        ("steps", 0, "from 1 up"),
        ("max_trials", 0, "from 1 up"),
        ("forget_weight", math.inf, "from 0 up"),
        ("preserve_weight", -0.1, "from 0 up"),
        ("update_weight", "1", "from 0 up"),
        ("keep", "first", "'last', 'best'"),
    ],
)
def test_impossible_settings(name, value, message):
    with pytest.raises(ValueError, match=f"{name} is .*{message}"):
        ForgetSettings(**{name: value})


def test_another_alpha_and_a_rank_above_the_dimensions(tiny):
    patch = forget(tiny, settings=replace(QUICK, alpha=10.0))
    assert patch.scale == 2.0
    with pytest.warns(UserWarning, match="rank is 40, but the projection is 64 by 32"):
        assert forget(tiny, settings=replace(QUICK, rank=40)).rank == 40


def test_rank_0_is_no_change(tiny):
    patch = ProjectionPatch(torch.zeros(0, 64), torch.zeros(32, 0), 0.0, ("cat",))
    assert torch.equal(text_projection(patch.apply(tiny)), text_projection(tiny))
    assert torch.equal(
        adapted_rows(draw(2, 64), text_projection(tiny).T, patch.A, patch.B, 0.0),
        draw(2, 64) @ text_projection(tiny),
    )
    assert torch.equal(merged(draw(3, 4), torch.zeros(0, 4), torch.zeros(3, 0), 1.0), draw(3, 4))


@pytest.mark.parametrize(
    "field", ["forget_hidden", "forget_target", "preserve_hidden", "preserve_target"]
)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_rows_that_are_not_finite(field, value):
    parts = {
        "forget_hidden": draw(2, 6),
        "forget_target": draw(2, 4),
        "preserve_hidden": draw(3, 6),
        "preserve_target": draw(3, 4),
    }
    parts[field][1, 0] = value
    with pytest.raises(
        ValueError, match=f"{field} holds NaN or infinite values, the first in row 1"
    ):
        residuals(draw(6, 4), Problem(**parts))


def test_rows_that_do_not_fit():
    P, X, U = draw(6, 4), draw(2, 6), draw(2, 4)
    with pytest.raises(ValueError, match=r"forget_target is .* rows of width 4"):
        residuals(P, Problem(X, X))
    with pytest.raises(ValueError, match="2 forget_hidden rows and 1 forget_target rows"):
        residuals(P, Problem(X, U[:1]))
    with pytest.raises(ValueError, match="0 forget_hidden rows"):
        residuals(P, Problem(X[:0], U[:0]))
    with pytest.raises(ValueError, match="2 preserve_hidden rows and 1 preserve_target rows"):
        residuals(P, Problem(X, U, X, U[:1]))
    with pytest.raises(ValueError, match="forget_hidden is torch.int64"):
        residuals(P, Problem(X.long(), U))
    with pytest.raises(ValueError, match="no problem to train"):
        train_patches(P, [], draw(1, 5, 6), QUICK)


def test_a_loss_that_is_not_finite():
    P, settings, starts = (
        draw(6, 4),
        ForgetSettings(rank=2, steps=30, max_trials=1, threshold=0.0),
        draw(1, 2, 6),
    )
    with pytest.raises(RuntimeError, match="The loss of problem 0 is inf before the first step"):
        train_patches(P, [Problem(1e30 * draw(1, 6), draw(1, 4))], starts, settings)
    fine, lost = train_patches(
        P,
        [Problem(draw(1, 6), draw(1, 4)), Problem(1e18 * draw(1, 6), draw(1, 4))],
        starts,
        replace(settings, lr=10.0, alpha=1e3),
    )
    assert fine.losses.isfinite().all() and not lost.losses.isfinite().all()
    assert lost.A.isfinite().all() and lost.B.isfinite().all()


@pytest.mark.parametrize(
    "dtype, trained",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_other_precisions(dtype, trained):
    P, problem = (
        draw(6, 4).to(dtype),
        Problem(draw(1, 6).to(dtype), draw(1, 4).to(dtype), draw(3, 6, seed=1).to(dtype)),
    )
    (done,) = train_patches(
        P, [problem], draw(1, 2, 6), ForgetSettings(rank=2, steps=20, max_trials=1, threshold=0.0)
    )
    assert done.A.dtype == trained and done.losses.isfinite().all()


def test_a_float64_model(tiny):
    exact = copy.deepcopy(tiny)
    exact.model.double()
    hidden = text_hidden(exact, ANIMALS)
    assert hidden.dtype == torch.float64 and torch.allclose(
        hidden.float(), text_hidden(tiny, ANIMALS), atol=1e-5
    )
    patch = forget(exact, settings=replace(QUICK, steps=20))
    adapted = patch.apply(exact)
    assert (
        patch.A.dtype == torch.float64
        and text_projection(adapted).dtype == torch.float64
        and exact.model.visual is adapted.model.visual
    )


# what fails is said


def test_all_trials_failed(tiny):
    settings = ForgetSettings(steps=3, max_trials=2, forget_weight=0.01, increment=0.0)
    with pytest.warns(
        UserWarning,
        match="1 of 2 tasks did not come near their target in 2 trials, the first is 'cat, dog'",
    ):
        patches = forget_many(
            tiny,
            [
                ForgetTask(["cat", "dog"], ANIMALS, ["wolf"], settings),
                ForgetTask(
                    "fox",
                    ANIMALS,
                    [],
                    settings,
                    target=text_hidden(tiny, ["fox"]) @ text_projection(tiny),
                ),
            ],
            progress=False,
        )
    assert [patch.settings["reached"] for patch in patches] == [False, True]


def test_a_dead_zone_is_seen_before_training(tiny):
    P, (problem,), _ = forget_problems(tiny, [cat_task(replace(QUICK, forget_weight=0.01))])
    assert 0.01 < dead_zone(P, problem, QUICK) < math.inf
    assert (
        dead_zone(P, replace(problem, forget_hidden=0 * problem.forget_hidden), QUICK) == math.inf
    )
    assert (
        not closed_form(P, problem, QUICK)[0].any()
        or closed_form(P, problem, QUICK)[0].norm() < 1e-3
    )


def test_demands_that_contradict_each_other(tiny):
    with pytest.warns(UserWarning, match="reads like a forgotten class"):
        task = cat_task(QUICK, ["cat "])
    with pytest.raises(ValueError, match="means the same as preserved ones"):
        solve_many(tiny, [task], exact=True)
    assert solve_many(tiny, [task])[0].update().isfinite().all()


def test_batches_of_different_settings(tiny):
    with pytest.raises(ValueError, match="settings differ in steps"):
        forget_many(
            tiny,
            [cat_task(QUICK, []), ForgetTask("dog", ANIMALS, [], replace(QUICK, steps=5))],
            progress=False,
        )
    with pytest.raises(ValueError, match="There is no task"):
        forget_many(tiny, [])
    with pytest.raises(ValueError, match=r"target has shape \[1, 3\]"):
        forget(tiny, target=torch.zeros(1, 3))


# patches


def test_patches_of_other_models(tiny, tmp_path):
    patch, other = forget(tiny), load_backbone("tiny-resnet", device="cpu")
    with pytest.raises(ValueError, match="patch for cat was made for the backbone"):
        patch.apply(other)
    above = forget(patch.apply(tiny), "dog")
    both = above.apply(patch.apply(tiny))
    with pytest.raises(ValueError, match="made for the backbone"):
        above.apply(tiny)
    with pytest.raises(ValueError, match="made for the backbone"):
        both.without("cat")
    with pytest.raises(ValueError, match="no patch 'owl'"):
        both.without("owl")
    assert both.without("dog").without("cat") is tiny
    with pytest.raises(FileNotFoundError, match="save_patch writes one"):
        load_patch(tmp_path / "none.safetensors")
    (tmp_path / "wrong.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="holds no patch"):
        load_patch(tmp_path / "wrong.safetensors")


def test_towers_without_a_projection(tiny):
    bare = copy.deepcopy(tiny)
    bare.model.text_projection = None
    with pytest.raises(ValueError, match="has no projection"):
        text_projection(bare)
    with pytest.raises(ValueError, match="with the same d are needed"):
        class_vectors(class_hidden(tiny, ANIMALS), text_projection(tiny).T)
