"""The published numbers use one vocabulary, and numbers of different scales never meet in one
column."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from oodnb.benchmark import score_table
from oodnb.results import (
    ROW_COLUMNS,
    average_seeds,
    check_rows,
    compare_with_published,
    metrics_table,
    published_rows,
    read_rows,
    rows,
    to_html,
    to_markdown,
    write_rows,
)

PUBLISHED = Path(__file__).parents[1] / "data" / "published"
COLUMNS = list(ROW_COLUMNS[:9])
PAPERS = sorted(p.stem for p in PUBLISHED.glob("*.csv"))


@pytest.fixture(scope="module")
def words():
    return json.loads((PUBLISHED / "vocabulary.json").read_text(encoding="utf-8"))


def lines(paper):
    with (PUBLISHED / f"{paper}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_a_file_per_paper(words):
    assert set(PAPERS) == set(words["papers"])


def problems(row, paper, words):
    "Everything in one published line that the vocabulary does not know."
    if row["paper"] != paper:
        yield f"paper {row['paper']!r} in {paper}.csv"
    for column, allowed in (
        ("backbone", words["backbones"]),
        ("dataset", words["datasets"]),
        ("metric", words["metrics"]),
    ):
        if row[column] not in allowed:
            yield f"{column} {row[column]!r}"
    if row["source"].split(":")[0] not in words["sources"] or not row["source"].partition(": ")[2]:
        yield f"source {row['source']!r}"
    if not re.fullmatch(words["method_pattern"], row["method"]):
        yield f"method {row['method']!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", row["table"]):
        yield f"table {row['table']!r}"
    if not row["setting"].strip():
        yield "no setting"
    convention = words["papers"][paper]["fpr95"]
    if row["metric"].startswith("fpr95") and not row["metric"].startswith(f"fpr95_{convention}"):
        yield f"{row['metric']!r}, but {paper} counts {convention}"
    if (
        words["metrics"].get(row["metric"], {}).get("unit") == "percent"
        and not 0 <= float(row["value"]) <= 100
    ):
        yield f"value {row['value']}"


@pytest.mark.parametrize("paper", PAPERS)
def test_published_lines_use_the_vocabulary(paper, words):
    with (PUBLISHED / f"{paper}.csv").open(encoding="utf-8") as file:
        assert file.readline().strip().split(",") == COLUMNS
    found = [
        f"line {n}: {p}"
        for n, row in enumerate(lines(paper), 2)
        for p in problems(row, paper, words)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "ViT-B/16"},
        {"backbone": "CLIP ViT-B/16"},
        {"metric": "FPR95"},
        {"metric": "AUROC"},
        {"metric": "fpr95_ood_positive"},
        {"dataset": "iNat"},
        {"dataset": "Average"},
        {"method": "LoCoOp (GL-MCM score)"},
        {"source": "somewhere"},
        {"paper": "LoCoOp"},
        {"value": "142"},
    ],
)
def test_unknown_words_are_rejected(change, words):
    row = lines("locoop")[0]
    assert not list(problems(row, "locoop", words))
    assert list(problems({**row, **change}, "locoop", words))


@pytest.mark.parametrize("paper", PAPERS)
def test_nothing_is_claimed_twice(paper):
    seen = [tuple(row[c] for c in COLUMNS[:7]) for row in lines(paper)]
    assert len(seen) == len(set(seen))


def test_fractions_became_percent():
    accuracies = [float(r["value"]) for r in lines("forget")]
    assert min(accuracies) > 20 and max(accuracies) == 100
    assert {
        r["value"]
        for r in lines("forget")
        if r["dataset"] == "StanfordDogs" and r["metric"] == "accuracy"
    } == {"51.679462572", "59.1290786948"}


def test_what_could_not_be_confirmed_is_absent():
    assert lines("toe") == []
    assert not [
        r
        for r in lines("hftt")
        if r["metric"] in ("auroc", "fpr95_ood_positive", "fpr95_id_positive")
    ]
    readme = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    assert "TOE" in readme and "header and no rows" in readme


def test_printed_means_agree_with_their_parts():
    for method in ("clipn+ctw", "clipn+atd"):
        for metric in ("auroc", "fpr95_id_positive"):
            cells = {
                (r["setting"].split("; ")[-1], r["dataset"]): float(r["value"])
                for r in lines("clipn")
                if (r["method"], r["metric"]) == (method, metric)
            }
            sets = ("iNaturalist", "SUN", "Textures", "Places")
            for name in sets:
                assert cells["mean of 3", name] == pytest.approx(
                    np.mean([cells[f"repeat {k}", name] for k in (1, 2, 3)]), abs=0.011
                )
            assert cells["mean of 3", "mean"] == pytest.approx(
                np.mean([cells["mean of 3", name] for name in sets]), abs=0.011
            )


def made_metrics(sets, seed=0):
    rng = np.random.default_rng(seed)
    scores = score_table(
        {"mcm": rng.normal(2, 1, 80)},
        {name: {"mcm": rng.normal(k / 2, 1, 60)} for k, name in enumerate(sets)},
    )
    return metrics_table(scores, n_boot=0)


def paper_rows(sets=("iNaturalist", "SUN", "Places", "Textures"), **changed):
    return rows(
        made_metrics(sets),
        **{
            **dict(
                paper="locoop",
                table="imagenet_main",
                backbone="ViT-B-16",
                setting="ImageNet; openai; zero-shot",
                scale="paper",
                run="r",
            ),
            **changed,
        },
    )


def mini_rows(**changed):
    return rows(
        made_metrics(("mini-near", "mini-textures")),
        **{
            **dict(
                paper="locoop",
                table="imagenet_main",
                backbone="mini",
                setting="mini; seed 0; zero-shot",
                scale="mini",
                run="m",
            ),
            **changed,
        },
    )


def test_paper_rows_meet_their_published_numbers():
    table = compare_with_published(paper_rows())
    others = table[table["paper"] != "locoop"].dropna(subset=["difference"])
    assert set(others["paper"]) == {"mcm"} and "SUN" in set(others["dataset"])  # printed there too
    table = table[table["paper"] == "locoop"].set_index(["method", "setting", "dataset", "metric"])
    here = table.sort_index().loc[("mcm", "ImageNet; openai; zero-shot")]
    assert here.loc[("SUN", "auroc"), "published"] == 92.6
    assert here.loc[("mean", "auroc"), "difference"] == pytest.approx(
        here.loc[("mean", "auroc"), "reproduced"] - 90.8
    )
    assert np.isnan(here.loc[("SUN", "fpr95_ood_positive"), "published"])
    assert table["reproduced"].isna().any() and table["published"].isna().any()


def test_mini_rows_have_their_own_column_and_no_difference():
    table = compare_with_published(pd.concat([mini_rows(), paper_rows()]))
    mini, paper = table["mini"].notna(), table["reproduced"].notna()
    assert (
        mini.sum() == len(mini_rows())
        and not (mini & (paper | table["published"].notna() | table["difference"].notna())).any()
    )
    alone = compare_with_published(mini_rows())
    assert alone["difference"].isna().all() and alone["published"].notna().any()
    assert "not comparable" in to_markdown(table) and "not comparable" in to_html(table)


def test_a_mean_over_other_sets_is_not_the_papers_mean():
    found = paper_rows(("iNaturalist", "SUN", "Places", "Textures", "NINCO"))
    assert "mean" not in set(
        found["dataset"]
    ) and "mean of iNaturalist, SUN, Places, Textures, NINCO" in set(found["dataset"])
    metrics = made_metrics(("Textures", "SUN", "Places", "iNaturalist"))
    assert "mean" in set(
        rows(
            metrics, "locoop", "imagenet_main", "ViT-B-16", "ImageNet; openai; zero-shot", "paper"
        )["dataset"]
    )


@pytest.mark.parametrize(
    "act",
    [
        lambda mixed, path: write_rows(mixed, path),
        lambda mixed, path: compare_with_published(pd.concat([mixed, published_rows("mcm")])),
        lambda mixed, path: check_rows(mixed.assign(scale="paper")),
        lambda mixed, path: check_rows(mixed.assign(scale="mini")),
        lambda mixed, path: compare_with_published(pd.concat([mixed, mixed.assign(run="second")])),
    ],
)
def test_mixing_is_refused(act, tmp_path):
    with pytest.raises(ValueError):
        act(pd.concat([mini_rows(), paper_rows()]), tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())


def test_refusal_explains_itself(tmp_path):
    with pytest.raises(ValueError, match="never share a column.*compare_with_published"):
        write_rows(pd.concat([mini_rows(), paper_rows()]), tmp_path / "rows.csv")


def test_averaging_keeps_scales_apart():
    both = average_seeds(pd.concat([mini_rows(), paper_rows(), paper_rows(run="s", seeds=2)]))
    assert set(both["scale"]) == {"mini", "paper"} and len(both) == len(mini_rows()) + len(
        paper_rows()
    )


def test_rows_survive_the_file(tmp_path):
    path = write_rows(
        average_seeds(pd.concat([paper_rows(seeds=1), paper_rows(seeds=2, run="s")])),
        tmp_path / "rows.csv",
    )
    again = read_rows(path)
    assert (again["std"] == 0).all() and set(again["seeds"]) == {"1;2"}
    assert write_rows(again, tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_compare_can_be_given_somebody_elses_numbers():
    theirs = paper_rows().assign(scale="published", run="")
    table = compare_with_published(paper_rows(), published=theirs)
    assert (table["difference"] == 0).all()


def torn_metrics(skipped):
    rng = np.random.default_rng(0)
    scores = score_table(
        {"mcm": rng.normal(2, 1, 80)}, {"mini-near": {"mcm": rng.normal(0, 1, 60)}}, "mini"
    )
    scores.attrs["skipped"] = skipped
    return metrics_table(scores, n_boot=0)


def rows_of(metrics):
    return rows(metrics, "locoop", "t", "mini", "mini; zero-shot", "mini")


def test_lost_pictures_reach_rows_and_tables():
    whole = torn_metrics({})
    torn = torn_metrics({"mini-near": [["7.png", "truncated"]], "mini": [["1.png", "empty"]] * 2})
    said = "Unreadable pictures, left out: 1 of 61 of mini-near, 2 of 82 of mini."
    assert said in to_markdown(torn) and said in to_html(torn)
    assert "Unreadable" not in to_markdown(whole) + to_html(whole)
    counts = rows_of(torn).set_index(["dataset", "metric"])["value"]
    assert counts["mini-near", "n_lost"] == 1 and counts["mini-near", "n_images"] == 61
    assert counts["mini", "n_lost"] == 2 and counts["mini", "n_images"] == 82
    pd.testing.assert_frame_equal(rows_of(whole), rows_of(torn).head(len(rows_of(whole))))


def test_every_table_names_its_thresholds_and_what_its_interval_is_over():
    text = to_markdown(made_metrics(("SUN",)))
    assert "with ID positive at the recall nearest to 95 %" in text
    assert "with OOD positive at the first recall of at least 95 %" in text
    only = to_markdown(made_metrics(("SUN",)), convention="id_positive")
    assert "OOD positive" not in only
    with pytest.raises(ValueError, match="choose 'pictures'"):
        to_markdown(made_metrics(("SUN",)), over="images")
