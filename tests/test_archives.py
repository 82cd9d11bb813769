"""Archives that try to write elsewhere, that are damaged, that are too large: nothing outside,
nothing left."""

import gzip
import io
import os
import random
import stat
import struct
import tarfile
import zipfile

import pytest
from server import special, tar_bytes, zip_bytes

from oodnb.data import archives
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


# damage that the readers of Python pass over


FILES = {f"set/{k}.bin": random.Random(k).randbytes(700 + 300 * k) for k in range(8)}


def outcome(data, folder, name):
    """'refused', 'same' or 'other': what became of a damaged archive."""
    folder.mkdir()
    (folder / name).write_bytes(data)
    try:
        unpack(folder / name, folder / "in", progress=False)
    except ValueError as error:
        assert name in str(error) and everything(folder) == [name]
        return "refused"
    found = {n: (folder / "in" / n).read_bytes() for n in everything(folder / "in") if "/" in n}
    return "same" if found == FILES else "other"


def flips(data, among, n=24):
    chance = random.Random(0)
    for k in range(n):
        damaged = bytearray(data)
        damaged[chance.choice(among)] ^= 1 << chance.randrange(8)
        yield k, bytes(damaged)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_every_flipped_bit_of_a_packed_tar_is_noticed(kind, tmp_path):
    data = tar_bytes(FILES, kind)
    found = [
        outcome(damaged, tmp_path / str(k), f"a.t{kind}")
        for k, damaged in flips(data, range(10, len(data)))
    ]
    assert "other" not in found and found.count("refused") >= 23


def test_every_flipped_bit_of_a_plain_tars_headers_is_noticed(tmp_path):
    data = tar_bytes(FILES, "")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        headers = [m.offset + k for m in tar for k in range(512)]
    found = [
        outcome(damaged, tmp_path / str(k), "a.tar") for k, damaged in flips(data, headers, 48)
    ]
    assert set(found) == {"refused"}


def test_a_header_of_zeros_does_not_end_a_tar(tmp_path):
    data = bytearray(tar_bytes(FILES, ""))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        middle = tar.getmembers()[4].offset
    data[middle : middle + 512] = bytes(512)
    assert outcome(bytes(data), tmp_path / "a", "a.tar") == "refused"


def test_a_tar_that_is_cut_anywhere_is_noticed(tmp_path):
    data = tar_bytes(FILES, "")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        starts, end = [m.offset for m in tar], tar.offset
    cuts = [*starts[1:], *(s + 512 for s in starts), *(s + 100 for s in starts), end]
    for k, cut in enumerate(cuts):
        assert outcome(data[:cut], tmp_path / str(k), "a.tar") == "refused", cut
    assert outcome(data + tar_bytes({"x": b"1"}, ""), tmp_path / "two", "a.tar") == "refused"
    assert outcome(data + bytes(10_240), tmp_path / "zeros", "a.tar") == "same"


def test_a_zip_that_is_cut_or_flipped_anywhere_is_noticed(tmp_path):
    data = zip_bytes(FILES)
    for k, cut in enumerate(range(0, len(data), len(data) // 23)):
        assert outcome(data[:cut], tmp_path / f"c{k}", "a.zip") == "refused", cut
    body = range(data.index(b"PK\1\2"))
    found = [outcome(d, tmp_path / f"f{k}", "a.zip") for k, d in flips(data, body)]
    assert "other" not in found
    short = data.replace(b"PK\5\6" + bytes(4) + b"\x08\0\x08", b"PK\5\6" + bytes(4) + b"\x09\0\x09")
    assert short != data and outcome(short, tmp_path / "short", "a.zip") == "refused"


@pytest.mark.parametrize("kind", ["", "gz"])
def test_a_tar_that_ends_in_a_zip_is_a_tar(kind, tmp_path):
    inner = zip_bytes({"hidden.txt": b"!"})
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.txt": b"1", "z.zip": inner}, kind))
    unpack(tmp_path / "a.tar", tmp_path / "in", progress=False)
    assert everything(tmp_path / "in") == ["a.txt", "z.zip"]
    assert (tmp_path / "in" / "z.zip").read_bytes() == inner


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tar_bytes({}, ""), "holds no file"),
        (tar_bytes({}, "gz"), "holds no file"),
        (zip_bytes({}), "holds no file"),
        (tar_bytes({}, "", [special("b", tarfile.SYMTYPE, "a")]), "no file, only 1 links"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), "packed by 7-Zip"),
        (b"Rar!\x1a\x07\x00" + bytes(40), "packed by RAR"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "packed by Zstandard"),
        (tar_bytes({"a" * 300: b"1"}), "too long"),
        (tar_bytes({"caf\udce9.jpg": b"1"}), "not UTF-8"),
        (tar_bytes({"a\0b": b"1"}, "", [special("nul\0/../x", tarfile.FIFOTYPE)]), "special"),
    ],
)
def test_what_holds_nothing_or_cannot_be_read_is_said(refused, data, words):
    refused(data, words)


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x41, 0x2000, 0x20])
def test_a_zip_with_any_lock_is_named(refused, flag):
    data = bytearray(zip_bytes({"a.txt": b"1"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.index(mark) + offset
        data[place : place + 2] = struct.pack("<H", flag)
    refused(bytes(data), "encrypted" if flag != 0x20 else "in way", "bad.zip")


@pytest.mark.parametrize("method", [1, 6, 9, 93, 95, 96, 98])
def test_ways_of_packing_that_python_does_not_know(refused, method):
    data = bytearray(zip_bytes({"a.txt": b"1"}))
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(mark) + offset] = method
    refused(bytes(data), f"in way {method}", "bad.zip")


def test_a_zip_of_a_later_version(refused):
    data = bytearray(zip_bytes({"a.txt": b"1"}))
    data[data.index(b"PK\x01\x02") + 6] = 99
    refused(bytes(data), "Python cannot read this kind", "bad.zip")


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "gz", "tar.xz", "tail"])
def test_bombs_are_bounded(kind, refused, monkeypatch):
    monkeypatch.setattr(archives, "_ALWAYS", 10**6)
    big = bytes(5 * 10**6)
    data = {
        "tar.gz": lambda: tar_bytes({"a": big}, "gz"),
        "tar.xz": lambda: tar_bytes({"a": big}, "xz"),
        "zip": lambda: zip_bytes({f"{k}": big[: 10**6] for k in range(5)}),
        "gz": lambda: gzip.compress(big),
        "tail": lambda: gzip.compress(tar_bytes({"a": b"1"}, "") + big),
    }[kind]()
    refused(data, "times its size; if you trust it", f"a.{kind}" if kind != "tail" else "a.tgz")


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_the_number_of_members_is_bounded(pack, tmp_path):
    (tmp_path / "a").write_bytes(pack({f"{k}": b"" for k in range(30)}))
    with pytest.raises(ValueError, match="more than 20 members"):
        unpack(tmp_path / "a", tmp_path / "in", progress=False, members=20)
    assert everything(tmp_path) == ["a"]


def test_headers_of_gigabytes_are_not_read_into_memory(refused):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    refused(header.tobuf() + bytes(2048), "no header", "a.tar")


def test_names_that_differ_in_case_are_two_files_or_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.txt": b"1", "A.TXT": b"2"}, ""))
    try:
        unpack(tmp_path / "a.tar", tmp_path / "in", progress=False)
    except ValueError as error:
        assert "but for its case" in str(error)
    else:
        assert (tmp_path / "in/a.txt").read_bytes() == b"1"
        assert (tmp_path / "in/A.TXT").read_bytes() == b"2"
