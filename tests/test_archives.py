"""Archives that try to write elsewhere, that are damaged, that are too large: nothing outside,
nothing left."""

import gzip
import os
import stat
import tarfile
import zipfile

import pytest
from server import special, tar_bytes, zip_bytes

from oodnb.data.archives import unpack

OUTSIDE = [
    "../out.txt",
    "a/../../out.txt",
    "/tmp/oodnb-out.txt",
    "..\\out.txt",
    "C:\\out.txt",
    "C:out.txt",
    "a/./../../out.txt",
]


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def refused(tmp_path):
    """Unpacking must fail with these words, and leave only the archive."""

    def check(data, words, name="bad.tar.gz"):
        (tmp_path / "box").mkdir()
        (tmp_path / "box" / name).write_bytes(data)
        with pytest.raises(ValueError, match=words):
            unpack(tmp_path / "box" / name, tmp_path / "box" / "in", progress=False)
        assert everything(tmp_path) == ["box", f"box/{name}"]

    return check


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside(refused, name):
    refused(tar_bytes({"fine.txt": b"1", name: b"!"}), "outside")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_of_a_zip(refused, name):
    refused(zip_bytes({"fine.txt": b"1", name: b"!"}), "outside", "bad.zip")


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, "../.."),
        (tarfile.LNKTYPE, "../../x"),
        (tarfile.LNKTYPE, "/etc/passwd"),
    ],
)
def test_links_that_lead_outside(refused, kind, to):
    refused(tar_bytes({"door/out.txt": b"!"}, more=[special("door", kind, to)]), "refused")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_and_pipes(refused, kind):
    refused(tar_bytes({}, more=[special("thing", kind)]), "special file")


def test_links_inside_are_not_made(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        tar_bytes(
            {"a/1.txt": b"1"},
            "",
            [special("b", tarfile.SYMTYPE, "a"), special("c.txt", tarfile.LNKTYPE, "a/1.txt")],
        )
    )
    done = unpack(tmp_path / "a.tar", tmp_path / "in", progress=False)
    assert everything(tmp_path / "in") == ["a", "a/1.txt"]
    assert done.skipped == [("b", "a link to 'a'"), ("c.txt", "a link to 'a/1.txt'")]


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        tar_bytes({"b/1.txt": b"1"}, "", [special("b", tarfile.SYMTYPE, "elsewhere")])
    )
    unpack(tmp_path / "a.tar", tmp_path / "in", progress=False)
    assert everything(tmp_path / "in") == ["b", "b/1.txt"] and not (tmp_path / "in/b").is_symlink()


def test_links_of_a_zip_are_not_made(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
        packed.writestr("1.txt", "1")
    done = unpack(tmp_path / "a.zip", tmp_path / "in", progress=False)
    assert (everything(tmp_path / "in"), done.skipped) == (["1.txt"], [("link", "a link")])


def test_the_same_name_twice(refused):
    refused(tar_bytes({"a": b"1", "a/b": b"2"}), "as a file and as a folder")


def test_damage(refused):
    refused(tar_bytes({"a": os.urandom(50_000)})[:-9000], "damaged or not complete")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "empty.tar"),
        (b"<html>log in</html>", "page.zip"),
        (b"\x1f\x8b\x08broken", "broken.gz"),
    ],
)
def test_no_archive_at_all(refused, data, name):
    refused(data, "no archive is recognised|damaged", name)


def test_a_flipped_bit_of_a_zip(refused):
    data = bytearray(zip_bytes({"a.bin": bytes(range(256)) * 20}))
    data[60] ^= 255
    refused(bytes(data), "damaged or not complete", "bad.zip")


def test_an_encrypted_zip(refused):
    data = bytearray(zip_bytes({"a.txt": b"1"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    refused(bytes(data), "encrypted", "bad.zip")


def test_a_zip_of_an_unknown_kind(refused):
    data = bytearray(zip_bytes({"a.txt": b"1"}))
    data[data.index(b"PK\x01\x02") + 10] = 99
    refused(bytes(data), "in way 99", "bad.zip")


def test_more_than_the_disk_holds(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(zip_bytes({"bomb.bin": bytes(10**6)}))
    monkeypatch.setattr(
        "oodnb.data.archives.shutil.disk_usage", lambda path: type("Free", (), {"free": 1000})
    )
    with pytest.raises(OSError, match="takes 1,000,000 bytes and the disk"):
        unpack(tmp_path / "a.zip", tmp_path / "in", progress=False)
    assert everything(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_all_kinds(tmp_path, kind):
    (tmp_path / "a.archive").write_bytes(
        tar_bytes({"./x/1.txt": b"one", "x/._1.txt": b"shadow", "__MACOSX/x": b"shadow"}, kind)
    )
    assert [
        name for name, *_ in unpack(tmp_path / "a.archive", tmp_path / "in", progress=False).files
    ] == ["x/1.txt"]


def test_one_compressed_file(tmp_path):
    (tmp_path / "x.h5.gz").write_bytes(gzip.compress(b"data"))
    assert [
        name for name, *_ in unpack(tmp_path / "x.h5.gz", tmp_path / "in", progress=False).files
    ] == ["x.h5"]


def test_only_into_a_new_folder(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes({"1.txt": b"new"}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.txt").write_text("mine")
    (tmp_path / "door").symlink_to(tmp_path / "in")
    for folder in ("in", "door"):
        with pytest.raises(ValueError, match="is there already"):
            unpack(tmp_path / "a.zip", tmp_path / folder, progress=False)
    assert (tmp_path / "in/1.txt").read_text() == "mine"
