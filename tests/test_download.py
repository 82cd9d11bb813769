"""Downloads over lines that break, from servers that change, lie, or want a login."""

import hashlib
import os
import random

import pytest
from server import serving

from oodnb.data.download import download, verify

CONTENT = random.Random(0).randbytes(300_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def web():
    with serving() as (address, web):
        web.files["/set.bin"] = CONTENT
        web.address = f"{address}/set.bin"
        yield web


def get(web, folder, **options):
    return download(web.address, folder / "set.bin", **{"wait": 0, "progress": False, **options})


def names(folder):
    return sorted(os.listdir(folder))


def test_in_one_go(web, tmp_path):
    facts = get(web, tmp_path, size=len(CONTENT), checksums=[MD5])
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert facts["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert names(tmp_path) == ["set.bin"] and len(web.asked) == 1
    get(web, tmp_path, checksums=[MD5])
    assert len(web.asked) == 1


def test_every_cut_is_gone_on_from(web, tmp_path):
    web.most = 70_000
    get(web, tmp_path, checksums=[MD5], tries=2)
    assert [asked for _, asked in web.asked] == [
        None,
        "bytes=70000-",
        "bytes=140000-",
        "bytes=210000-",
        "bytes=280000-",
    ]


def test_a_later_command_goes_on(web, tmp_path):
    web.most, web.codes = 100_000, []
    with pytest.raises(ConnectionError, match=r"100,000 bytes are kept in .*set.bin.part"):
        get(web, tmp_path, tries=1)
    assert names(tmp_path) == ["set.bin.part", "set.bin.part.version"]
    web.most = None
    get(web, tmp_path, checksums=[MD5])
    assert web.asked[-1][1] == "bytes=100000-" and names(tmp_path) == ["set.bin"]


@pytest.mark.parametrize(
    "change", [{"ranges": False}, {"version": '"2"'}, {"version": None}, {"version": 'W/"1"'}]
)
def test_parts_of_two_files_are_never_joined(web, tmp_path, change):
    web.most = 100_000
    with pytest.raises(ConnectionError):
        get(web, tmp_path, tries=1)
    web.most, web.files["/set.bin"] = None, CONTENT[::-1]
    vars(web).update(change)
    if "ranges" not in change and change["version"] == 'W/"1"':
        web.ranges = False
    get(web, tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT[::-1]


def test_a_part_that_is_too_long_is_begun_anew(web, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT + b"more")
    (tmp_path / "set.bin.part.version").write_text('"1"')
    get(web, tmp_path, checksums=[MD5])
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_server_without_length_is_checked_by_size(web, tmp_path):
    web.length, web.most = False, 1000
    with pytest.raises(ConnectionError, match="1,000 of 300,000"):
        get(web, tmp_path, size=len(CONTENT), tries=1)
    web.most = None
    get(web, tmp_path, size=len(CONTENT))


def test_wrong_checksum_keeps_the_name_free(web, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="published is 00.*kept as set.bin.rejected"):
            get(web, tmp_path, checksums=["md5:00"])
        assert names(tmp_path) == ["set.bin.rejected"]
    assert [asked for _, asked in web.asked] == [None, None]


def test_wrong_size_is_seen_before_anything_is_fetched(web, tmp_path):
    with pytest.raises(ValueError, match="offers 300,000 bytes, the published file has 5"):
        get(web, tmp_path, size=5)
    assert not (tmp_path / "set.bin").exists() and not (tmp_path / "set.bin.part").exists()


def test_busy_servers_are_asked_again_and_others_are_not(web, tmp_path):
    web.codes = [503, 429, 500]
    get(web, tmp_path)
    assert len(web.asked) == 4
    (tmp_path / "set.bin").unlink()
    web.asked.clear()
    web.codes = [403]
    with pytest.raises(ConnectionError, match="answers 403"):
        get(web, tmp_path)
    assert len(web.asked) == 1


def test_a_login_page_is_no_archive(web, tmp_path):
    web.kind = "text/html; charset=utf-8"
    with pytest.raises(ConnectionError, match="a web page instead of a file"):
        get(web, tmp_path)
    assert names(tmp_path) == []


def test_redirections(web, tmp_path):
    web.redirects["/moved"] = web.address
    download(web.address.replace("/set.bin", "/moved"), tmp_path / "set.bin", progress=False)
    from oodnb.data.download import _NeverWeaker
    from urllib.request import Request

    with pytest.raises(ConnectionError, match="is not encrypted"):
        _NeverWeaker().redirect_request(
            Request("https://example.org/a"), None, 302, "", {}, "http://example.org/a"
        )


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a", "/etc/passwd", ""])
def test_only_the_web_is_fetched(tmp_path, url):
    with pytest.raises(ValueError, match="is no web address"):
        download(url, tmp_path / "x")


def test_full_disk(web, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "oodnb.data.download.shutil.disk_usage", lambda path: type("Free", (), {"free": 1000})
    )
    with pytest.raises(OSError, match="needs 300,000 more bytes .* has 1,000 left"):
        get(web, tmp_path)
    assert "set.bin" not in names(tmp_path)


def test_published_ends_of_a_hash(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert verify(tmp_path / "abc", 3, ["sha256:BA7816bf*f20015ad"])["size"] == 3
    with pytest.raises(ValueError, match="published is ba7816bf.*f20015ae"):
        verify(tmp_path / "abc", 3, ["sha256:ba7816bf*f20015ae"])


# lines and servers that are worse than they should be


@pytest.mark.parametrize("silence", [0, 0.6])
@pytest.mark.parametrize("version", ['"1"', None])
@pytest.mark.parametrize("most", [9_000, 90_000])
def test_a_line_that_breaks_before_every_buffer_is_full_still_progresses(
    web, tmp_path, most, silence, version
):
    web.most, web.silence, web.version = most, silence, version
    web.files["/set.bin"] = CONTENT[: 4 * most]
    md5 = "md5:" + hashlib.md5(CONTENT[: 4 * most]).hexdigest()
    get(web, tmp_path, checksums=[md5], tries=2, timeout=0.2)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT[: 4 * most]
    assert [asked for _, asked in web.asked[1:4]] == [f"bytes={k * most}-" for k in (1, 2, 3)]


def test_what_came_before_a_silence_is_kept_for_the_next_command(web, tmp_path):
    web.most, web.silence = 90_000, 5
    with pytest.raises(ConnectionError, match="90,000 bytes are kept"):
        get(web, tmp_path, tries=1, timeout=0.2)
    assert (tmp_path / "set.bin.part").read_bytes() == CONTENT[:90_000]


@pytest.mark.parametrize("length", [False, "many", "-3", "", "1e3"])
def test_the_published_size_is_a_cap_without_a_length(web, tmp_path, length):
    web.length = length
    with pytest.raises(ValueError, match="more than the 1,000 bytes of the published"):
        get(web, tmp_path, size=1000)
    assert names(tmp_path) in ([], ["set.bin.part.version"])


@pytest.mark.parametrize("length", [False, "many", "-3", ""])
def test_a_length_that_is_no_number_is_none(web, tmp_path, length):
    web.length = length
    get(web, tmp_path, checksums=[MD5], size=len(CONTENT))
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_drip_is_no_download(web, tmp_path):
    web.drip = 5
    with pytest.raises(ConnectionError, match="bytes a second came, 100000 are the least"):
        get(web, tmp_path, tries=2, timeout=0.2, slowest=100_000)
    kept = (tmp_path / "set.bin.part").read_bytes()
    assert kept and CONTENT.startswith(kept) and len(web.asked) == 2


@pytest.mark.parametrize("code", [416, 408, 429, 500, 503])
def test_a_busy_answer_to_the_first_request_is_tried_again(web, tmp_path, code):
    web.codes = [code]
    get(web, tmp_path, checksums=[MD5], tries=2)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    web.codes = [code] * 9
    with pytest.raises(ConnectionError, match=f"answered {code}.*after 2 tries"):
        download(web.address, tmp_path / "b.bin", tries=2, wait=0, progress=False)


def test_a_packed_answer_is_another_file(web, tmp_path):
    web.packed = "gzip"
    with pytest.raises(ConnectionError, match="packed by gzip"):
        get(web, tmp_path)
    assert "set.bin" not in names(tmp_path)
