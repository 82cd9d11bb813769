"""From a name to files in their place: mirrors, folders, killed commands, files of yours in the
way, and the command line."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets.imagenet as tv_imagenet
from PIL import Image
from server import serving, special, tar_bytes, zip_bytes

import oodnb.data.catalogue as catalogue
import oodnb.data.download
import oodnb.data.prepare
from oodnb.data.catalogue import Archive, Entry, Split
from oodnb.datasets import check_dataset, load_dataset
from oodnb.data.prepare import prepare, prepared
from oodnb.reproduce import main


def picture(i):
    import io

    file = io.BytesIO()
    Image.new("RGB", (4, 4), (i % 256, i // 256, 0)).save(file, "PNG")
    return file.getvalue()


def archive(name, **facts):
    return Archive(
        **{
            "url": None,
            "page": "the keeper",
            "size": None,
            "checksums": (),
            "into": ".",
            "unpack": True,
        }
        | facts,
        name=name,
    )


@pytest.fixture
def zoo(monkeypatch, tmp_path):
    """A data set of ten pictures in one archive, served from a local address, and a root for it."""
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OODNB_DATA", raising=False)
    known = dict(catalogue.entries())
    monkeypatch.setattr(catalogue, "entries", lambda: known)
    with serving() as (address, web):
        known["Zoo"] = Entry(
            "Zoo",
            "ood",
            "none",
            "https://example.org",
            "folder",
            (archive("zoo.tar.gz", url=f"{address}/zoo.tar.gz"),),
            {"test": Split("test", 10, 0, ("Zoo/images",), "*.png", {})},
            "",
            "",
        )
        web.files["/zoo.tar.gz"] = tar_bytes({f"Zoo/images/{i}.png": picture(i) for i in range(10)})
        web.address, web.root, web.known = address, tmp_path / "root", known
        web.root.mkdir()
        web.get = lambda **options: prepare(
            "Zoo", root=web.root, **{"say": lambda line: None, "progress": False} | options
        )
        yield web


def files(root):
    return sorted(
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.is_file() and ".oodnb" not in p.parts
    )


def test_fetched_verified_unpacked_and_loaded(zoo):
    said = []
    zoo.get(say=said.append)
    assert "10 files" in said[0] and "no published checksum" in said[0]
    images = load_dataset("zoo", root=zoo.root)
    assert (images.name, len(images), images.about["different"]) == ("Zoo", 10, "")
    assert files(zoo.root) == [f"Zoo/images/{i}.png" for i in range(10)] + [
        "archives/Zoo/zoo.tar.gz"
    ]
    zoo.get()
    assert len(zoo.asked) == 1
    assert check_dataset("Zoo", zoo.root, progress=False)["ok"]


def test_check_names_each_file(zoo):
    zoo.get()
    images = zoo.root / "Zoo/images"
    (images / "3.png").unlink()
    (images / "new.png").write_bytes(picture(99))
    (images / "4.png").write_bytes(picture(400) + b"longer")
    same_size = bytearray((images / "5.png").read_bytes())
    same_size[-5] ^= 1
    (images / "5.png").write_bytes(same_size)
    before = {name: (zoo.root / name).read_bytes() for name in files(zoo.root)}
    with pytest.raises(
        ValueError,
        match=(
            r"1 files are missing \(first 3.png\), 1 files do not belong to it \(first "
            r"new.png\), 1 files have another size"
        ),
    ):
        load_dataset("Zoo", root=zoo.root)
    report = check_dataset("Zoo", zoo.root, progress=False)
    assert (report["ok"], report["missing"], report["extra"], report["different"]) == (
        False,
        ["3.png"],
        ["new.png"],
        ["4.png", "5.png"],
    )
    assert {name: (zoo.root / name).read_bytes() for name in files(zoo.root)} == before
    zoo_set = load_dataset("Zoo", root=zoo.root, allow_different=True)
    assert zoo_set.name == "Zoo" and zoo_set.about["different"].startswith("1 files are missing")


def test_wrong_checksum_leaves_nothing_in_place(zoo):
    zoo.known["Zoo"] = replace(
        zoo.known["Zoo"], archives=(replace(zoo.known["Zoo"].archives[0], checksums=("md5:00",)),)
    )
    with pytest.raises(ValueError, match="published is 00"):
        zoo.get()
    assert files(zoo.root) == ["archives/Zoo/zoo.tar.gz.rejected"]


def test_a_cut_line_then_the_same_command(zoo, monkeypatch):
    zoo.most = 100
    monkeypatch.setattr(
        oodnb.data.prepare,
        "download",
        lambda *words, **options: oodnb.data.download.download(*words, tries=1, **options),
    )
    with pytest.raises(FileNotFoundError, match="100 bytes are kept"):
        zoo.get()
    zoo.most = None
    zoo.get()
    assert zoo.asked[-1][1] == "bytes=100-" and len(load_dataset("Zoo", root=zoo.root)) == 10


@pytest.mark.parametrize("how", ["mirror", "folder", "shelf", "root"])
def test_other_sources(zoo, tmp_path, how):
    data, source = zoo.files["/zoo.tar.gz"], None
    zoo.files.clear()
    if how == "mirror":
        source, zoo.files["/mirror/zoo.tar.gz"] = f"{zoo.address}/mirror/", data
    else:
        place = {
            "folder": tmp_path / "given",
            "shelf": zoo.root / "archives/Zoo",
            "root": zoo.root,
        }[how]
        place.mkdir(parents=True, exist_ok=True)
        (place / "zoo.tar.gz").write_bytes(data)
        source = place if how == "folder" else None
    zoo.get(source=source)
    assert len(load_dataset("Zoo", root=zoo.root)) == 10


def test_dead_address_is_told_like_a_file_to_fetch(zoo):
    zoo.files.clear()
    with pytest.raises(
        FileNotFoundError, match=r"(?s)zoo.tar.gz.*archives/Zoo/zoo.tar.gz.*answers 404"
    ):
        zoo.get()


def test_files_of_yours_are_not_touched(zoo):
    mine = zoo.root / "Zoo/images/7.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    (zoo.root / "archives/Zoo").mkdir(parents=True)
    said = []
    zoo.get(say=said.append)  # somebody unpacked the set already: nothing is fetched
    assert zoo.asked == [] and "nothing to fetch" in said[0]
    mine.unlink()
    (zoo.root / "Zoo/images/7.png").write_bytes(b"mine")
    (zoo.root / ".oodnb").mkdir(exist_ok=True)
    (zoo.root / ".oodnb/Zoo.json").write_text(json.dumps({"zoo.tar.gz": {"begun": True}}))
    with pytest.raises(
        ValueError, match=r"1 files are in .* with other contents \(Zoo/images/7.png\)"
    ):
        zoo.get()
    assert mine.read_bytes() == b"mine" and len(files(zoo.root)) == 2


def test_links_in_the_way_are_not_followed(zoo, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (zoo.root / "Zoo").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        zoo.get()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_hostile_archive(zoo):
    import tarfile

    zoo.files["/zoo.tar.gz"] = tar_bytes(
        {"Zoo/images/1.png": b"1", "../../up.txt": b"!"},
        more=[special("Zoo/x", tarfile.SYMTYPE, "images")],
    )
    with pytest.raises(ValueError, match="outside of the folder"):
        zoo.get()
    assert (
        files(zoo.root) == ["archives/Zoo/zoo.tar.gz"] and not (zoo.root.parent / "up.txt").exists()
    )


KILLED = """
import os, signal, sys
import oodnb.data.prepare as p
import oodnb.data.catalogue as catalogue
from oodnb.data.catalogue import Archive, Entry, Split
archive = Archive("zoo.tar.gz", None, "", None, (), ".", True)
split = Split("test", 10, 0, ("Zoo/images",), "", {})
known = {"Zoo": Entry("Zoo", "ood", "", "", "folder", (archive,), {"test": split}, "", "")}
catalogue.entries = lambda: known
moved, rename = [], os.rename
def dying(*words):
    rename(*words)
    moved.append(1)
    if len(moved) == 4: os.kill(os.getpid(), signal.SIGKILL)
os.rename = dying
p.prepare("Zoo", root=sys.argv[1], progress=False)
"""


def test_killed_half_way_through_moving(zoo):
    (zoo.root / "archives/Zoo").mkdir(parents=True)
    (zoo.root / "archives/Zoo/zoo.tar.gz").write_bytes(zoo.files["/zoo.tar.gz"])
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(zoo.root)],
        env=os.environ | {"PYTHONPATH": str(Path(oodnb.__file__).parents[1])},
        capture_output=True,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-500:]
    assert len(list((zoo.root / "Zoo/images").iterdir())) == 4
    zoo.get()
    assert (
        len(load_dataset("Zoo", root=zoo.root)) == 10
        and check_dataset("Zoo", zoo.root, progress=False)["ok"]
    )
    assert not list(zoo.root.glob("**/.oodnb-unpack"))


def devkit(labels):
    """The parts of ImageNet's development kit that are read."""
    import io

    wnids = ["n01440764", "n01443537", "n01484850"]
    kind = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
    ]
    synsets = np.array(
        [[(i + 1, wnid, f"word {i}, other", "", 0)] for i, wnid in enumerate(wnids)], dtype=kind
    )
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets})
    return tar_bytes(
        {
            "ILSVRC2012_devkit_t12/data/meta.mat": file.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "\n".join(
                map(str, labels)
            ).encode(),
        }
    )


def test_imagenet_is_sorted_by_the_development_kit(zoo, monkeypatch, tmp_path):
    import hashlib

    entry, given = zoo.known["ImageNet"], tmp_path / "given"
    given.mkdir()
    made = {
        "ILSVRC2012_devkit_t12.tar.gz": devkit([2, 1, 3, 1]),
        "ILSVRC2012_img_val.tar": tar_bytes(
            {f"ILSVRC2012_val_{i:08d}.JPEG": picture(i) for i in range(1, 5)}, ""
        ),
        "ILSVRC2012_img_train.tar": tar_bytes(
            {
                f"{w}.tar": tar_bytes({f"{w}_{i}.JPEG": picture(i) for i in range(2)}, "")
                for w in ("n01440764", "n01443537")
            },
            "",
        ),
    }
    for name, data in made.items():
        (given / name).write_bytes(data)
    sums = {name: hashlib.md5(data).hexdigest() for name, data in made.items()}
    monkeypatch.setitem(
        tv_imagenet.ARCHIVE_META,
        "devkit",
        ("ILSVRC2012_devkit_t12.tar.gz", sums["ILSVRC2012_devkit_t12.tar.gz"]),
    )
    zoo.known["ImageNet"] = replace(
        entry,
        archives=tuple(replace(a, checksums=(f"md5:{sums[a.name]}",)) for a in entry.archives),
    )
    with pytest.raises(FileNotFoundError, match="1 files must be fetched by hand"):
        (given / "ILSVRC2012_devkit_t12.tar.gz").rename(tmp_path / "kit")
        prepare("ImageNet", "test", zoo.root, given, say=print, progress=False)
    (tmp_path / "kit").rename(given / "ILSVRC2012_devkit_t12.tar.gz")
    prepare("ImageNet100", None, zoo.root, given, say=print, progress=False)
    images = load_dataset("ImageNet", root=zoo.root, allow_different=True)
    assert images.ids == [
        "n01440764/ILSVRC2012_val_00000002.JPEG",
        "n01440764/ILSVRC2012_val_00000004.JPEG",
        "n01443537/ILSVRC2012_val_00000001.JPEG",
        "n01484850/ILSVRC2012_val_00000003.JPEG",
    ]
    assert images.class_names == ["tench", "goldfish", "great white shark"] and images[2][
        0
    ].getpixel((0, 0)) == (1, 0, 0)
    assert load_dataset("ImageNet", "train", root=zoo.root, allow_different=True).ids == [
        f"{w}/{w}_{i}.JPEG" for w in ("n01440764", "n01443537") for i in range(2)
    ]


def test_an_archive_in_an_archive(zoo, tmp_path):
    inner = tar_bytes({"101_ObjectCategories/ant/image_0001.jpg": picture(1)})
    (zoo.root / "caltech-101.zip").write_bytes(
        zip_bytes(
            {"caltech-101/101_ObjectCategories.tar.gz": inner, "__MACOSX/caltech-101/._x": b""}
        )
    )
    entry = zoo.known["Caltech101"]
    zoo.known["Caltech101"] = replace(entry, archives=(replace(entry.archives[0], checksums=()),))
    prepare("Caltech101", root=zoo.root, say=print, progress=False)
    assert files(zoo.root / "Caltech101") == ["caltech-101/101_ObjectCategories/ant/image_0001.jpg"]
    assert prepared("Caltech101", zoo.root)[1].path.tolist() == [
        "Caltech101/caltech-101/101_ObjectCategories/ant/image_0001.jpg"
    ]


# ---- the command line


def test_commands(zoo, capsys):
    root = ["--root", str(zoo.root)]
    assert main(["data", "list", *root]) == 0
    assert "Zoo" in capsys.readouterr().out
    assert main(["data", "check", "Zoo", *root]) == 1
    assert "Zoo is not there" in capsys.readouterr().out
    assert main(["data", "prepare", "Zoo", "SSB-hard", *root]) == 1
    out, err = capsys.readouterr()
    assert (
        "10 files" in out
        and "ssb_hard.zip" in err
        and "1 of 2 data sets are not complete: SSB-hard" in err
    )
    assert main(["data", "check", "zoo", *root]) == 0
    assert capsys.readouterr().out == "zoo test: ok, 10 images\n"
    (zoo.root / "Zoo/images/3.png").unlink()
    assert main(["data", "check", "Zoo", "--all", *root]) == 1
    assert "missing: 3.png" in capsys.readouterr().out
    assert main(["data", "list", "Zoo", *root]) == 0
    assert "zoo.tar.gz" in capsys.readouterr().out
    assert main(["data", "check", "./nowhere"]) == 1
    assert "does not exist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "Zooo"], "Did you mean 'Zoo'"),
        (["prepare", "Zoo", "--split", "val"], "it has only 'test'"),
        (["list", "Zooo"], "Did you mean 'Zoo'"),
        (["prepare", "Zoo", "--root", "./nowhere"], "is no folder"),
        (["check", "Zooo"], "Did you mean 'Zoo'"),
    ],
)
def test_wrong_usage(zoo, capsys, words, said):
    assert main(["data", *words, *([] if "--root" in words else ["--root", str(zoo.root)])]) == 2
    assert said in capsys.readouterr().err and zoo.asked == []


def test_without_a_root(zoo, capsys):
    assert main(["data", "prepare", "Zoo"]) == 2
    assert "OODNB_DATA is not set" in capsys.readouterr().err
    assert main(["data", "list"]) == 0
