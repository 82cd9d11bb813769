"""Named benchmarks in each of their shapes: the right list is read, any other is refused, or says
so in every row."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torchvision
from PIL import Image

from oodnb.backbones import load_backbone
from oodnb.benchmark import run_benchmark
from oodnb.data.catalogue import class_lists, entries
from oodnb.datasets import check_dataset, load_dataset
from oodnb.detectors import zero_shot
from oodnb.ground.places import shipped
from oodnb.results import metrics_table, rows, without_cleaned

FORGET = (
    shipped("reference", "forget", "zero_shot_reference.json")
    if (shipped() / "reference/forget/zero_shot_reference.json").is_file()
    else None
)
CUT = ["Shih", "black", "wire", "soft", "flat", "curly", "German short"]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OODNB_DATA", raising=False)


def paint(root, names):
    data = None
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            Image.new("RGB", (2, 2), (1, 2, 3)).save(path, "PNG")
            data = path.read_bytes()
        path.write_bytes(data)


# ---- the facts


def test_every_entry_is_complete():
    assert len(entries()) == 26
    for name, entry in entries().items():
        assert (
            entry.licence and entry.homepage.startswith("http") and entry.source and entry.splits
        ), name
        for archive in entry.archives:
            assert archive.url or archive.page, archive
            assert all(
                re.fullmatch(
                    r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|sha256:[0-9a-f]{8}\*[0-9a-f]{4,}", c
                )
                for c in archive.checksums
            ), archive
            assert set(archive.splits) <= set(entry.splits) and (archive.url or "http").startswith(
                "http"
            )
            assert archive.arrange in (None, *(a.name for a in entry.archives))


def test_checksums_are_torchvisions():
    tv = torchvision.datasets
    sums = {a.name: a.checksums for e in entries().values() for a in e.archives}
    published = (
        {n: m for n, m in tv.imagenet.ARCHIVE_META.values()}
        | {
            "cifar-10-python.tar.gz": tv.CIFAR10.tgz_md5,
            "cifar-100-python.tar.gz": tv.CIFAR100.tgz_md5,
            "dtd-r1.0.1.tar.gz": tv.DTD._MD5,
            "102flowers.tgz": tv.Flowers102._file_dict["image"][1],
        }
        | {f"{n}.gz": m for split in tv.PCAM._FILES.values() for n, _, m in split.values()}
    )
    assert {name: f"md5:{md5}" for name, md5 in published.items()} == {
        name: next(c for c in sums[name] if c.startswith("md5")) for name in published
    }


def test_subset_lists():
    lists = class_lists()
    assert [
        len(set(lists[name]["wnids"])) for name in ("ImageNet10", "ImageNet20", "ImageNet100")
    ] == [10, 20, 100]
    import hashlib

    for name in ("ImageNet10", "ImageNet20", "ImageNet100"):
        assert (
            hashlib.sha256(("\n".join(lists[name]["wnids"]) + "\n").encode()).hexdigest()
            == lists[name]["list_sha256"]
        )


@pytest.mark.skipif(FORGET is None, reason="reference cases do not ship with the wheel")
def test_class_names_are_those_of_the_forgetting_paper():
    published = json.loads(FORGET.read_text("utf-8"))["datasets"]
    assert {
        name: (lists["class_names"], lists["test_counts"])
        for name, lists in class_lists().items()
        if "class_names" in lists
    } == {name: (d["class_names"], d["test_counts"]) for name, d in published.items()}
    assert {name: sum(class_lists()[name]["test_counts"]) for name in published} == {
        name: entries()[name].splits["test"].images for name in published
    }
    assert set(CUT) <= set(class_lists()["StanfordDogs"]["class_names"])


# ---- split files

FOLDERS = {
    "StanfordDogs": "Images",
    "StanfordCars": ".",
    "Caltech101": "101_ObjectCategories",
    "OxfordFlowers": "jpg",
}


def split_file(root, name, change=lambda rows: rows):
    """A whole test set as the paper counts it, with full names where the paper's are cut."""
    lists, part = class_lists()[name], entries()[name].splits["test"]
    full = {"Shih": "Shih-Tzu", "German short": "German_short-haired_pointer"} | {
        cut: f"{cut}-coated_dog" for cut in CUT[1:6]
    }
    rows = [
        [
            f"c{label:03d}/{i}.jpg",
            label,
            full.get(n, n.replace(" ", "_")) if name == "StanfordDogs" else n,
        ]
        for label, (n, count) in enumerate(zip(lists["class_names"], lists["test_counts"]))
        for i in range(count)
    ]
    rows = change(rows)
    folder = root / name
    paint(folder / FOLDERS[name], [path for path, *_ in rows])
    (folder / part.options["list"]).write_text(
        json.dumps({"train": rows[:1], "val": rows[:1], "test": rows})
    )
    return folder


@pytest.mark.parametrize("name", list(FOLDERS))
def test_forgetting_sets(tmp_path, name):
    folder = split_file(tmp_path, name)
    images = load_dataset(name, "test", root=tmp_path)
    lists = class_lists()[name]
    assert (images.name, images.class_names, images.class_counts().tolist()) == (
        name,
        lists["class_names"],
        lists["test_counts"],
    )
    assert images[0][0].getpixel((0, 0)) == (1, 2, 3)
    if name == "StanfordDogs":
        assert [n for n in images.class_names if n in CUT] == [
            n for n in lists["class_names"] if n in CUT
        ] and len([n for n in images.class_names if n in CUT]) == 7
    first = folder / images.ids[0]
    first.unlink()
    with pytest.raises(ValueError, match="images instead of"):
        load_dataset(name, "test", root=tmp_path)
    report = check_dataset(name, tmp_path, progress=False)
    assert (report["ok"], report["missing"]) == (False, [images.ids[0]])


def test_other_split_files_are_refused(tmp_path):
    split_file(
        tmp_path / "a", "Caltech101", lambda rows: [[p, 99 - label, n] for p, label, n in rows]
    )
    with pytest.raises(ValueError, match="label 99 is called 'face', in the paper's runs it is"):
        load_dataset("Caltech101", root=tmp_path / "a")

    def moved(rows):
        rows[0] = [rows[0][0], rows[500][1], rows[500][2]]
        return rows

    split_file(tmp_path / "b", "Caltech101", moved)
    with pytest.raises(ValueError, match="other counts per class than published, first 'face'"):
        load_dataset("Caltech101", root=tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no split file"),
        ("[]", "is no split file"),
        ('{"train": []}', "is no split file"),
        ('{"test": [["a.jpg", "x", "face"]]}', "is no split file"),
        ('{"test": [["../../a.jpg", 0, "face"]]}', "lies outside of"),
        ('{"test": [["/etc/a.jpg", 0, "face"]]}', "lies outside of"),
        ('{"test": [["a.jpg", 100, "x"]]}', "label 100 is called"),
    ],
)
def test_damaged_split_files(tmp_path, text, said):
    (tmp_path / "Caltech101").mkdir()
    (tmp_path / "Caltech101/split_zhou_Caltech101.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_dataset("Caltech101", root=tmp_path)


def test_absent_parts_are_named(tmp_path):
    (tmp_path / "StanfordCars").mkdir()
    with pytest.raises(FileNotFoundError, match="split_zhou_StanfordCars.json is not"):
        load_dataset("StanfordCars", root=tmp_path)
    (tmp_path / "StanfordCars/split_zhou_StanfordCars.json").write_text(
        json.dumps(
            {"test": [["cars_test/1.jpg", 0, class_lists()["StanfordCars"]["class_names"][0]]]}
        )
    )
    with pytest.raises(FileNotFoundError, match="None of the 1 pictures of its list"):
        load_dataset("StanfordCars", root=tmp_path)


# ---- folders by WordNet id


def test_subsets_read_imagenets_folders(tmp_path):
    wnids = sorted(class_lists()["ImageNet10"]["wnids"])
    paint(
        tmp_path,
        [
            f"ImageNet/val/{w}/ILSVRC2012_val_{50 * i + k:08d}.JPEG"
            for i, w in enumerate([*wnids, "n01440764"])
            for k in range(50)
        ],
    )
    images = load_dataset("ImageNet10", root=tmp_path)
    assert (len(images), images.about["wnids"], images.about["different"]) == (500, wnids, "")
    assert images.class_names[wnids.index("n01530575")] == "brambling"
    os.rename(
        tmp_path / f"ImageNet/val/{wnids[0]}/ILSVRC2012_val_00000000.JPEG",
        tmp_path / f"ImageNet/val/{wnids[1]}/moved.JPEG",
    )
    with pytest.raises(ValueError, match="49 to 51 images per class instead of 50"):
        load_dataset("ImageNet10", root=tmp_path)


def test_imagenet_c_by_corruption_and_severity(tmp_path):
    paint(tmp_path, ["ImageNet-C/fog/3/n01440764/ILSVRC2012_val_00000293.JPEG"])
    images = load_dataset("ImageNet-C", "fog/3", root=tmp_path, allow_different=True)
    assert (images.split, images.class_names) == ("fog/3", ["tench"])
    with pytest.raises(FileNotFoundError, match="weather.tar"):
        load_dataset("ImageNet-C", "fog/4", root=tmp_path)


def test_cleaned_sets_beside_raw_ones(tmp_path):
    """NINCO's cleaned samples are sets of their own, scored in the same pass, and enter no mean."""
    paint(
        tmp_path,
        [
            f"NINCO/NINCO_popular_datasets_subsamples/Places/Places_{i:03d}_b_badlands.jpg"
            for i in range(153)
        ],
    )
    cleaned = load_dataset("Places-cleaned", root=tmp_path)
    assert (cleaned.name, len(cleaned), cleaned.about["different"]) == ("Places-cleaned", 153, "")
    os.remove(tmp_path / "NINCO/NINCO_popular_datasets_subsamples/Places/Places_007_b_badlands.jpg")
    with pytest.raises(ValueError, match="152 images instead of 153"):
        load_dataset("Places-cleaned", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="oodnb data prepare NINCO(.|\n)*NINCO_all.tar.gz"):
        load_dataset("Textures-cleaned", root=tmp_path)


def test_raw_and_cleaned_in_one_pass(tmp_path):
    rng = np.random.default_rng(0)
    for folder, n in (
        ("known", 6),
        ("Places/images", 5),
        ("NINCO/NINCO_popular_datasets_subsamples/Places", 3),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                tmp_path / folder / f"{i}.png"
            )
    sets = [
        replace(load_dataset(name, root=tmp_path, allow_different=True), name=name)
        for name in ("Places", "Places-cleaned")
    ]
    backbone = load_backbone("tiny-vit")
    scores = run_benchmark(
        backbone,
        load_dataset(tmp_path / "known"),
        sets,
        zero_shot(backbone, ["cat", "dog"], "mcm"),
        cache=False,
        progress=False,
    )
    raw, cleaned = without_cleaned(scores)
    assert metrics_table(raw, n_boot=0)["dataset"].tolist() == ["Places", "mean"]
    table = metrics_table(cleaned, n_boot=0).query("dataset != 'mean'")
    assert rows(
        table, "locoop", "imagenet_main", "ViT-B-16", "ImageNet; openai; zero-shot", "paper"
    )["dataset"].unique().tolist() == ["Places-cleaned"]


def test_ninco_has_three_lists(tmp_path):
    paint(
        tmp_path,
        [f"NINCO/NINCO_OOD_unit_tests/kind{k:02d}/{i}.png" for k in range(17) for i in range(400)],
    )
    assert len(load_dataset("NINCO", "units", root=tmp_path)) == 6800
    with pytest.raises(FileNotFoundError, match="NINCO_OOD_classes"):
        load_dataset("NINCO", root=tmp_path)


# ---- lists, tables, captions, arrays


def test_openood_list(tmp_path):
    paint(tmp_path, [f"images_largescale/openimage_o/images/{i}.jpg" for i in range(3)])
    listed = tmp_path / "benchmark_imglist/imagenet/test_openimage_o.txt"
    with pytest.raises(FileNotFoundError, match="the list test_openimage_o.txt is not"):
        load_dataset("OpenImage-O", root=tmp_path)
    listed.parent.mkdir(parents=True)
    listed.write_text(
        "openimage_o/images/2.jpg -1\nopenimage_o/images/0.jpg -1\nopenimage_o/images/9.jpg -1\n"
    )
    images = load_dataset("OpenImage-O", root=tmp_path, allow_different=True)
    assert (images.ids, images.about["files"]["missing"]) == (
        ["openimage_o/images/2.jpg", "openimage_o/images/0.jpg"],
        ["openimage_o/images/9.jpg"],
    )


def test_isic(tmp_path):
    paint(tmp_path, [f"ISIC-18/ISIC2018_Task3_Test_Input/ISIC_{i}.jpg" for i in range(2)])
    table = tmp_path / "ISIC-18/ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv"
    table.parent.mkdir()
    table.write_text(
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
        "ISIC_0,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n"
        "ISIC_1,0.0,0.0,0.0,0.0,0.0,0.0,1.0\n"
    )
    images = load_dataset("ISIC-18", root=tmp_path, allow_different=True)
    assert [images.class_names[label] for label in images.labels] == [
        "melanocytic nevus",
        "vascular lesion",
    ]
    table.write_text(table.read_text().replace("ISIC_1,0.0", "ISIC_1,1.0"))
    with pytest.raises(ValueError, match="line 3 of the table does not have exactly one class"):
        load_dataset("ISIC-18", root=tmp_path)


def test_cifar_is_torchvisions(tmp_path, monkeypatch):
    import hashlib
    import pickle

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [])
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    for name, content in (
        ("test_batch", {"data": pixels, "labels": list(range(10))}),
        ("batches.meta", {"label_names": list("abcdefghij")}),
    ):
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {
        name: hashlib.md5((folder / name).read_bytes()).hexdigest()
        for name in ("test_batch", "batches.meta")
    }
    with pytest.raises(ValueError, match="cannot be read as CIFAR-10"):
        load_dataset("CIFAR-10", root=tmp_path)
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]]
    )
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]},
    )
    images = load_dataset("CIFAR-10", root=tmp_path, allow_different=True)
    assert (images.class_names, images.labels.tolist(), images[3][0].size) == (
        list("abcdefghij"),
        list(range(10)),
        (32, 32),
    )
    with pytest.raises(ValueError, match="10 images instead of 10,000"):
        load_dataset("CIFAR-10", root=tmp_path)


def test_pcam_is_torchvisions(tmp_path):
    (tmp_path / "pcam").mkdir()
    h5py = pytest.importorskip("h5py")
    with (
        h5py.File(tmp_path / "pcam/camelyonpatch_level_2_split_test_x.h5", "w") as x,
        h5py.File(tmp_path / "pcam/camelyonpatch_level_2_split_test_y.h5", "w") as y,
    ):
        x["x"], y["y"] = (
            np.full((3, 8, 8, 3), 7, dtype=np.uint8),
            np.array([0, 1, 0], dtype=np.uint8).reshape(3, 1, 1, 1),
        )
    images = load_dataset("PCAM", root=tmp_path, allow_different=True)
    assert (images.labels.tolist(), images[1][0].getpixel((0, 0)), images.class_names[1]) == (
        [0, 1, 0],
        (7, 7, 7),
        "metastatic tissue",
    )


def test_cc3m_shards(tmp_path):
    from server import tar_bytes

    (tmp_path / "cc3m").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "p.png")
    (tmp_path / "cc3m/00000.tar").write_bytes(
        tar_bytes({"0.png": (tmp_path / "p.png").read_bytes(), "0.txt": b"a small square"}, "")
    )
    images = load_dataset("CC3M", "train", root=tmp_path)
    assert (images.name, images.captions, images.split) == ("CC3M", ["a small square"], "train")


# ---- the row says so


def test_a_different_list_names_itself_in_every_row(tmp_path):
    from oodnb.benchmark import run_benchmark
    from oodnb.detectors import zero_shot
    from oodnb.backbones import load_backbone
    from oodnb.results import metrics_table, rows

    paint(
        tmp_path,
        [f"SUN/images/{i}.png" for i in range(4)]
        + [f"own/{c}/{i}.png" for c in ("cat", "dog") for i in range(3)],
    )
    for i in range(4):
        Image.new("RGB", (2, 2), (50 * i, 9, 9)).save(tmp_path / f"SUN/images/{i}.png")
    backbone, own = load_backbone("tiny-vit"), load_dataset(tmp_path / "own")
    sun = load_dataset("SUN", root=tmp_path, allow_different=True)
    scores = run_benchmark(
        backbone,
        own,
        [sun],
        zero_shot(backbone, ["cat", "dog"], scores=("mcm",)),
        cache=False,
        progress=False,
    )
    made = rows(
        metrics_table(scores, n_boot=0), "locoop", "own", "ViT-B-16", "own; none; zero-shot", "own"
    )
    assert "SUN" in set(made["dataset"])
    assert set(made["setting"]) == {
        "own; none; zero-shot; different: SUN (4 images instead of 10,000)"
    }
