"""Files that survive crashes, and names made of contents."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oodnb.ground.files import atomic_path, locked
from oodnb.ground.hashing import content_hash
from oodnb.ground.places import data_root, home, shipped

ROOT = Path(__file__).parents[1]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.binary(max_size=6)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def kind(value):
    """Equality that tells 1 from True, 1.0 and -0.0 from 0.0, as the hash does."""
    if isinstance(value, list):
        return ["list", [kind(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", {key: kind(item) for key, item in value.items()}]
    return [type(value).__name__, value.hex() if isinstance(value, float) else value]


@settings(max_examples=300, deadline=None)
@given(values, values)
def test_equal_hash_means_equal_value(a, b):
    assert (content_hash(a) == content_hash(b)) == (kind(a) == kind(b))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_parts_are_not_glued(a, b):
    assert (content_hash(*a) == content_hash(*b)) == (a == b)


def test_same_in_every_process():
    code = (
        "from oodnb.ground.hashing import content_hash; print(content_hash({'b': [1, "
        "2.5, None], 'a': {'x': True, 'y': 'é'}}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert found == {content_hash({"a": {"y": "é", "x": True}, "b": (1, 2.5, None)}) + "\n"}


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensors(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    assert content_hash(tensor) == content_hash(tensor.T.contiguous().T) != content_hash(tensor.T)
    if dtype != torch.bfloat16:
        assert content_hash(tensor) == content_hash(tensor.numpy())
    assert content_hash(tensor[0, 0]) != content_hash(tensor[:1, 0])


def test_odd_values():
    assert content_hash(np.float64(0.5), np.int64(3), np.bool_(True), np.str_("a")) == content_hash(
        0.5, 3, True, "a"
    )
    assert content_hash("\udc80") != content_hash("?")
    assert content_hash(float("nan")) == content_hash(float("nan")) and content_hash(
        10**30
    ) != content_hash(1e30)
    with pytest.raises(ValueError, match="array of dtype object"):
        content_hash(np.array([None]))
    with pytest.raises(ValueError, match=r"part 0\[1\]: set"):
        content_hash([1, {2}])


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "table.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("old")
    code = f"""
import time
from oodnb.ground.files import atomic_path
with atomic_path({str(target)!r}) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert target.read_text() == "old"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_new_files_follow_the_umask(tmp_path):
    with atomic_path(tmp_path / "a" / "b.txt") as temporary:
        temporary.write_text("x")
    (tmp_path / "plain.txt").write_text("x")
    assert (tmp_path / "a" / "b.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_lock_between_processes(tmp_path):
    target = tmp_path / "features"
    code = (
        "import time\nfrom oodnb.ground.files import locked\nwith "
        f"locked({str(target)!r}):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    with (
        pytest.raises(TimeoutError, match="there is nothing to delete"),
        locked(target, timeout=0.2),
    ):
        pass
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(TimeoutError), locked(target, timeout=0.3, patience=0.1):
            pass
    assert "Waiting for another process" in str(caught[0].message)
    child.send_signal(signal.SIGKILL)
    child.wait()
    start = time.monotonic()
    with locked(target, timeout=5):
        assert time.monotonic() - start < 5


def test_places(monkeypatch, tmp_path):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "later"))
    assert home() == tmp_path / "later" and not home().exists()
    monkeypatch.setenv("OODNB_HOME", "~/somewhere")
    assert home() == Path.home() / "somewhere"
    monkeypatch.delenv("OODNB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="OODNB_DATA is not set"):
        data_root()
    (tmp_path / "file").touch()
    monkeypatch.setenv("OODNB_DATA", str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        data_root()
    with pytest.raises(FileNotFoundError, match="oodnb ships no 'reference/none'"):
        shipped("reference", "none")


def test_importing_paths_costs_no_torch():
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, oodnb.ground.places; assert 'torch' not in sys.modules",
        ],
        cwd=ROOT,
        check=True,
    )
