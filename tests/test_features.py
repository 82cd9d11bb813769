"""What notebooks test badly: runs that are killed, two processes at once, damaged files, folders
that cannot be written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import little
import numpy as np
import pytest
import torch
from little import Eye, Squares

from oodnb.pipeline.cache import cache_info, clear_cache, kept_things
from oodnb.datasets import ImageSet
from oodnb.features import extract, stream

ROOT = Path(__file__).parents[1]


def pictures(*args, **options):
    return ImageSet(**vars(Squares(*args, **options)))


def run(cache, pause):
    """extract() in another process, which prints how many pictures it encoded."""
    command = [sys.executable, str(Path(little.__file__)), str(cache), str(pause)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def contents(cache):
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in sorted(Path(cache).rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))


def test_killed_run_resumes_and_ends_with_the_same_bytes(tmp_path):
    killed = run(tmp_path / "killed", pause=0.2)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("killed/*/parts-local/*.safetensors"))) < 2:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert list(cache_info(tmp_path / "killed").kind) == ["unfinished"]
    eye = Eye()
    extract(eye, pictures(), tmp_path / "killed", batch_size=4, chunk=8, local=True)
    assert 0 < eye.seen < 50
    extract(Eye(), pictures(), tmp_path / "whole", batch_size=4, local=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {name.split("/")[1] for name in contents(tmp_path / "whole")} == {
        "global.json",
        "global.safetensors",
        "local.json",
        "local.safetensors",
    }


def test_two_processes_share_the_work(tmp_path):
    both = [run(tmp_path / "cache", pause=0.1) for _ in range(2)]
    seen = sorted(int(process.communicate(timeout=300)[0]) for process in both)
    assert seen == [0, 50]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "json", "json cut", "other key", "gone"])
@pytest.mark.parametrize("kind", ["global", "local"])
def test_damaged_cache_is_named_set_aside_and_made_again(tmp_path, harm, kind):
    folder = Path(extract(Eye(), pictures(), tmp_path, local=True).about["path"])
    good = extract(Eye(), pictures(), False, local=True)
    path, described = folder / f"{kind}.safetensors", folder / f"{kind}.json"
    data = path.read_bytes()
    if harm == "flip":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    if harm == "cut":
        path.write_bytes(data[:-3])
    if harm == "empty":
        path.write_bytes(b"")
    if harm == "json":
        described.write_text("[]")
    if harm == "json cut":
        described.write_text(described.read_text()[:100])
    if harm == "other key":
        described.write_text(json.dumps(json.loads(described.read_text()) | {"key": "0" * 16}))
    if harm == "gone":
        path.unlink()
    eye = Eye()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = extract(eye, pictures(), tmp_path, local=True)
    assert (
        eye.seen == 50
        and torch.equal(again.local_features, good.local_features)
        and path.read_bytes() == data
    )
    said = [str(w.message) for w in caught]
    assert (
        said == []
        if harm == "gone"
        else (len(said) == 1 and str(path) in said[0] and (folder / f"{kind}.damaged").exists())
    )


def test_damaged_part_is_made_again(tmp_path):
    class Stops(Eye):
        def encode_images(self, pixels, local=False):
            if self.seen >= 40:
                raise KeyboardInterrupt
            return super().encode_images(pixels, local)

    with pytest.raises(KeyboardInterrupt):
        extract(Stops(), pictures(), tmp_path, batch_size=4, chunk=8)
    parts = sorted(tmp_path.glob("*/parts-global/*"))
    assert len(parts) == 5
    parts[2].write_bytes(parts[2].read_bytes()[:-1])
    eye = Eye()
    result = extract(eye, pictures(), tmp_path, batch_size=4, chunk=8)
    assert eye.seen == 50 - 16
    assert torch.equal(
        result.image_features, extract(Eye(), pictures(), False, batch_size=4).image_features
    )


def test_unreadable_pictures_are_counted_named_and_listed(tmp_path):
    dataset = pictures(broken={3, 49})
    with pytest.warns(UserWarning, match="2 of 50 pictures of squares could not be read: 003.png"):
        features = extract(Eye(), dataset, tmp_path, batch_size=4)
    assert len(features) == 48 and "003.png" not in features.ids and features.labels[3] == 4
    assert features.skipped == [
        ("003.png", "OSError: disk error at 3"),
        ("049.png", "OSError: disk error at 49"),
    ]
    assert [
        entry["id"]
        for entry in json.loads((Path(features.about["path"]) / "quarantine.json").read_text())
    ] == ["003.png", "049.png"]
    with pytest.warns(UserWarning, match="2 of 50"):
        assert extract(Eye(), dataset, tmp_path).about["source"] == "cache"
    with pytest.raises(RuntimeError, match="003.png"):
        extract(Eye(), dataset, tmp_path, on_error="raise")
    healed = extract(Eye(), pictures(), tmp_path)
    assert len(healed) == 50 and not (Path(healed.about["path"]) / "quarantine.json").exists()


def test_all_pictures_unreadable(tmp_path):
    for features in (
        lambda: extract(Eye(), pictures(4, range(4)), tmp_path),
        lambda: list(stream(Eye(), pictures(4, range(4)), False)),
    ):
        with pytest.raises(
            ValueError, match="4 of 4 pictures of squares could not be read: 000.png"
        ):
            features()


@pytest.mark.parametrize("broken", [{0, 1, 2, 3}, {5}, {48, 49}, set(range(44, 50))])
@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_stream_gives_the_same_rows_and_the_whole_list_of_skipped(tmp_path, broken, keep_bytes):
    dataset = pictures(broken=broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunks = list(stream(Eye(), dataset, tmp_path, batch_size=4, keep_bytes=keep_bytes))
        whole = extract(Eye(), dataset, tmp_path, local=True)
    assert [name for chunk in chunks for name in chunk.ids] == whole.ids
    assert [pair for chunk in chunks for pair in chunk.skipped] == whole.skipped
    assert torch.equal(torch.cat([chunk.image_features for chunk in chunks]), whole.image_features)
    torch.testing.assert_close(
        torch.cat([chunk.local_features for chunk in chunks]), whole.local_features
    )


def test_stream_takes_global_features_from_the_cache(tmp_path):
    known = extract(Eye(), pictures(), tmp_path, batch_size=50)
    streamed = torch.cat(
        [
            chunk.image_features
            for chunk in stream(Eye(), pictures(), tmp_path, batch_size=7, keep_bytes=0)
        ]
    )
    assert torch.equal(streamed, known.image_features)


@pytest.mark.parametrize("workers", [0, 1, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_workers_and_batches_do_not_change_features(workers, batch_size):
    known = extract(Eye(), pictures(), False, workers=0, batch_size=50)
    other = extract(Eye(), pictures(), False, workers=workers, batch_size=batch_size)
    assert other.ids == known.ids
    torch.testing.assert_close(other.image_features, known.image_features, rtol=1e-6, atol=1e-6)


def test_nothing_is_written_without_a_cache(tmp_path):
    extract(Eye(), pictures(4), cache=False, local=True)
    list(stream(Eye(), pictures(4), cache=False))
    assert not (tmp_path / "home").exists()


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    extract(Eye(), pictures(4))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("oodnb.pipeline.cache.tempfile.TemporaryFile", refuse)
    assert extract(Eye(), pictures(4)).about["source"] == "cache"
    with pytest.warns(UserWarning, match="computed and not kept"):
        assert extract(Eye(), pictures(5)).about == {"source": "computed"}
    with pytest.raises(ValueError, match="cannot be written: Permission denied"):
        extract(Eye(), pictures(5), cache=tmp_path / "chosen")


def test_features_that_are_not_finite_are_named(tmp_path):
    class Blind(Eye):
        def encode_images(self, pixels, local=False):
            result = super().encode_images(pixels, local)
            result[2] = torch.nan
            return result

    with pytest.raises(RuntimeError, match="not finite: 006.png"):
        extract(Blind(), pictures(12).subset(np.arange(4, 12)), tmp_path)


def test_interrupted_stream_leaves_no_entry(tmp_path):
    for chunk in stream(Eye(), pictures(), tmp_path, batch_size=4, keep_bytes=0):
        break
    assert len(cache_info(tmp_path)) == 0
    assert extract(Eye(), pictures(), tmp_path).about["source"] == "computed"


def test_clear_cache_chooses_and_leaves_others_alone(tmp_path):
    extract(Eye(), pictures(4), tmp_path)
    extract(Eye(), pictures(5, name="circles"), tmp_path)
    (tmp_path / "mine").mkdir()
    assert clear_cache("circles", cache=tmp_path) > 0
    assert list(cache_info(tmp_path).dataset) == ["squares"]
    clear_cache(cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "home"] == [
        "mine"
    ]


def test_cleared_cache_does_not_pull_local_features_away(tmp_path):
    features = extract(Eye(), pictures(), tmp_path, local=True)
    known = features.local_features.clone()
    shutil.rmtree(tmp_path)
    assert torch.equal(features.local_features, known)


def test_writing_into_features_does_not_change_the_cache(tmp_path):
    features = extract(Eye(), pictures(), tmp_path, local=True)
    features.local_features.zero_()
    features.image_features.zero_()
    again = extract(Eye(), pictures(), tmp_path, local=True)
    assert again.about["source"] == "cache" and again.local_features.abs().sum() > 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux to see threads")
def test_decoding_runs_ahead_by_a_few_batches_only():
    started = []
    dataset = pictures(400)
    read, dataset.read = dataset.read, lambda i: started.append(i) or read(i)
    first = next(iter(stream(Eye(), dataset, False, batch_size=8, workers=4)))
    assert len(first) == 8 and len(started) < 100


def test_clear_cache_takes_other_things_only_when_they_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path))
    for kind in ("mini", "features/texts", "branches"):
        (tmp_path / kind).mkdir(parents=True)
        (tmp_path / kind / "a.safetensors").write_bytes(bytes(10**6))
    told = kept_things().set_index("kind")
    assert told["MB"][["mini", "features/texts", "branches", "contexts"]].tolist() == [1, 1, 1, 0]
    assert clear_cache() == 0 and kept_things()["files"].sum() == 3
    assert clear_cache(also=["mini", "texts"]) == 2
    assert kept_things().set_index("kind")["files"]["branches"] == 1
    with pytest.raises(ValueError, match="Nothing is kept as 'minis'; possible are mini"):
        clear_cache(also=["minis"])
    with pytest.raises(ValueError, match="leave dataset and backbone out"):
        clear_cache("circles", also=["mini"])


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_stream_survives_a_full_disk(tmp_path):
    true = extract(Eye(), pictures(), cache=False)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.warns(UserWarning, match="cannot be kept in"):
            parts = list(stream(Eye(), pictures(), tmp_path / "c", batch_size=4, keep_bytes=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    seen = torch.cat([part.image_features for part in parts])
    assert torch.equal(seen, true.image_features)
