"""What is counted after forgetting, against numbers of the published implementation
(data/reference/forget/CASES.md, sections 7 and 8)."""

import json

import numpy as np
import pytest

from oodnb.forget.evaluation import (
    class_accuracy,
    class_positions,
    forget_metrics,
    nearest_class,
    summary_score,
)
from oodnb.pipeline.rows import published_rows
from reference import ROOT, cases, close

ZERO_SHOT = json.loads((ROOT / "forget" / "zero_shot_reference.json").read_text("utf-8"))[
    "datasets"
]
PROTOCOL = json.loads((ROOT / "forget" / "protocol.json").read_text("utf-8"))


def counted(logits, labels, forget_idx):
    """Predictions and everything that is counted from them."""
    called, n_classes = nearest_class(logits), logits.shape[1]
    return called, forget_metrics(
        class_accuracy(called, labels, n_classes),
        np.bincount(labels, minlength=n_classes),
        forget_idx,
    )


@pytest.mark.parametrize("case", cases("forget", "metrics_*.npz"))
def test_accuracies(case):
    called, found = counted(case["logits"], case["labels"], case["forget_idx"])
    assert (called == case["predictions"]).all()
    close((called == case["labels"]).mean(), case["overall_acc"], atol=1e-6)
    close(found["recalls"], case["forget_class_acc"], atol=1e-6)
    close(found["forget"], case["forget_acc_mean"], atol=1e-6)
    close(found["other"], case["other_class_acc"], atol=1e-6)


@pytest.mark.parametrize("case", cases("forget", "metrics_*.npz"))
def test_logits(case):
    for images, texts, wanted, labels in (
        ("features", "classifier", case["logits"], None),
        ("other_features", "other_classifier", None, case["other_labels"]),
    ):
        rows = case[images].astype(np.float64)
        logits = 100 * rows / np.linalg.norm(rows, axis=1, keepdims=True) @ case[texts]
        if wanted is not None:
            close(logits, wanted, atol=1e-4)
        else:
            close((nearest_class(logits) == labels).mean(), case["other_dataset_acc"], atol=1e-6)


def summary_rows(case):
    """Per row of a summary: metrics before forgetting, from the class accuracies of its data
    set."""
    multi = bool(case["multi"])
    for dataset, name in zip(case["row_dataset"].tolist(), case["row_name"].tolist()):
        at = class_positions(
            name.split("|") if multi else name, case[f"{dataset}_class_names"].tolist()
        )
        yield forget_metrics(case[f"{dataset}_zs_class_acc"], case[f"{dataset}_class_counts"], at)


@pytest.mark.parametrize("case", cases("forget", "summary_*.npz"))
def test_summary(case):
    before = list(summary_rows(case))
    was, others = (np.array([row[key] for row in before]) for key in ("forget_by_image", "other"))
    close(was, case["zs_forget_acc"], atol=1e-6)
    close(others, case["zs_other_acc"], atol=1e-6)
    score = summary_score(
        case["forget_acc"],
        was,
        case["other_acc"],
        others,
        case["other_dataset_acc_after"],
        case["other_dataset_acc_before"],
    )
    close(score, case["score"], atol=1e-6)
    if "row_forget_class_accs" in case:
        close(case["row_forget_class_accs"].mean(1), case["forget_acc"], atol=1e-6)


@pytest.mark.parametrize(
    "dataset, backbone", [(d, b) for d in ZERO_SHOT for b in ("RN50", "ViT-B-16")]
)
def test_published_rows_follow_from_the_counts(dataset, backbone):
    """The before-forgetting columns, the only published numbers that could be confirmed."""
    facts, rows = ZERO_SHOT[dataset], published_rows("forget")
    correct = facts["correct"][{"RN50": "RN50", "ViT-B-16": "ViT-B/16"}[backbone]]
    counts = np.array(facts["test_counts"])
    own = rows[(rows["dataset"] == dataset) & (rows["backbone"] == backbone)]
    printed = {
        (row["setting"].split("; ", 1)[1], row["metric"]): row["value"]
        for row in own.to_dict("records")
    }
    assert printed.pop(("all classes", "accuracy")) == pytest.approx(
        100 * sum(correct) / counts.sum(), abs=1e-6
    )
    names = PROTOCOL["forget_classes"][dataset]
    for kind, forgotten in [*(("single", [name]) for name in names), ("multi", names)]:
        found = forget_metrics(
            np.array(correct) / counts, counts, class_positions(forgotten, facts["class_names"])
        )
        for metric, value in (
            ("forget_accuracy", found["forget"]),
            ("forget_accuracy_by_image", found["forget_by_image"]),
            ("retain_accuracy", found["other"]),
        ):
            wanted = printed.pop((f"{kind}: {'|'.join(forgotten)}", metric), None)
            assert (
                wanted is None
                and kind == "single"
                or wanted == pytest.approx(100 * value, abs=1e-6)
            )
    assert not printed
