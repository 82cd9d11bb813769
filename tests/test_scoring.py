"""oodnb score, decide, join and watch: every input, killed processes, the same bytes in the end,
and what is wrong said before long work."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from oodnb.backbones import load_backbone
from oodnb.command.main import main
from oodnb.detectors import threshold_at_tpr, zero_shot
from oodnb.drift import watch_unknown
from oodnb.saved import load_detector, save_detector
from oodnb.scoring.blocks import PLACES, deal
from oodnb.scoring.parts import join_parts, schema_of, table_writer
from oodnb.scoring.sources import Item, Source, open_sources

ROOT = Path(__file__).parents[1]
NAMES = "red,green,blue"
MODEL = ["--backbone", "tiny-vit", "--device", "cpu", "--quiet"]
SLOW = bool(os.environ.get("OODNB_SLOW"))


def picture(i, side=8):
    chance = np.random.default_rng(i)
    array = chance.integers(0, 90, (side, side, 3), dtype=np.uint8)
    array[:, :, i % 3] += 160
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("in") / "pictures"
    for i in range(60):
        (top / f"{i % 4}").mkdir(parents=True, exist_ok=True)
        picture(i).save(top / f"{i % 4}" / f"{i:03d}.png")
    return top


@pytest.fixture(scope="module")
def detector(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("detector") / "d.safetensors"
    words = ["decide", "--classes", NAMES, "--known", str(folder), "--keep", "0.8", *MODEL]
    assert main([*words, "--output", str(file)]) == 0
    return file


def score(*words):
    return main(["score", *map(str, words), *MODEL])


def with_detector(file, *words):
    return main(["score", *map(str, words), "--detector", str(file), "--device", "cpu", "--quiet"])


# inputs


def shard_of(path, paths):
    with tarfile.open(path, "w") as shard:
        for p in paths:
            shard.add(p, p.name)
            text = io.BytesIO(b"a caption")
            about = tarfile.TarInfo(f"{p.stem}.txt")
            about.size = 9
            shard.addfile(about, text)
    return path


def scores_by_name(path):
    table = pd.read_parquet(path)
    return {name.rpartition("/")[2]: s for name, s in zip(table["image_id"], table["max_logit"])}


def test_every_input_gives_the_same_scores(folder, tmp_path, monkeypatch, capsys):
    fsspec = pytest.importorskip("fsspec")
    paths = sorted(folder.rglob("*.png"))
    assert score(folder, "--classes", NAMES, "--output", tmp_path / "folder.parquet") == 0
    whole = scores_by_name(tmp_path / "folder.parquet")
    memory = fsspec.filesystem("memory")
    for p in paths:
        memory.pipe(f"/zoo/{p.parent.name}/{p.name}", p.read_bytes())
    memory.pipe("/s.tar", shard_of(tmp_path / "07.tar", paths).read_bytes())
    told = [str(p) for p in paths]
    pd.DataFrame({"n": range(60), "file": told}).to_csv(tmp_path / "list.csv", index=False)
    pd.DataFrame({"n": range(60), "where": told}).to_parquet(tmp_path / "list.parquet")
    (tmp_path / "list.txt").write_text("\n".join(told))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(told)))
    inputs = {
        "pattern": [f"{folder}/*/*.png"],
        "files": told,
        "csv": [tmp_path / "list.csv"],
        "column": [tmp_path / "list.parquet", "--column", "where"],
        "text": [tmp_path / "list.txt"],
        "stdin": ["-"],
        "shard": [tmp_path / "07.tar"],
        "braces": [f"{tmp_path}/{{07..07}}.tar"],
        "memory": ["memory://zoo"],
        "memory shard": ["memory://s.tar"],
    }
    for kind, words in inputs.items():
        assert score(*words, "--classes", NAMES, "--output", tmp_path / f"{kind}.parquet") == 0, (
            kind
        )
        found = scores_by_name(tmp_path / f"{kind}.parquet")
        assert found.keys() == whole.keys(), kind
        assert np.allclose([found[n] for n in whole], list(whole.values()), atol=1e-4), kind
    assert not list(tmp_path.glob("*.unfinished"))


def test_forms_of_output_say_the_same(folder, tmp_path, capsys):
    for form in ("parquet", "csv", "jsonl"):
        assert score(folder, "--classes", NAMES, "--output", tmp_path / f"o.{form}") == 0
    table = pd.read_parquet(tmp_path / "o.parquet")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "o.csv", keep_default_na=False, dtype={"decision": str}),
        table,
        check_dtype=False,
        check_exact=True,
    )
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert lines == table.to_dict("records")
    capsys.readouterr()
    assert score(folder, "--classes", NAMES) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split("\t") == ["max_logit", "nearest", "decision", "image"]
    assert len(printed) == 61 and printed[1].endswith("/0/000.png")


def test_unreadable_pictures_are_rows_with_a_reason(folder, tmp_path):
    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        picture(i).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    (tmp_path / "in" / "<b>&.png").write_bytes(b"no")
    code = score(
        tmp_path / "in",
        "--classes",
        NAMES,
        "--output",
        tmp_path / "o.parquet",
        "--report",
        tmp_path / "o.html",
    )
    table = pd.read_parquet(tmp_path / "o.parquet")
    assert code == 5 and (table["reason"] != "").sum() == 3
    assert table.loc[table["reason"] != "", "max_logit"].isna().all()
    assert "<b>&" not in (tmp_path / "o.html").read_text()
    gone = tmp_path / "gone.txt"
    gone.write_text("no/such.png\n")
    assert score(gone, "--classes", NAMES, "--output", tmp_path / "g.parquet") == 1
    assert pd.read_parquet(tmp_path / "g.parquet")["reason"].tolist() == ["there is no such file"]


def test_scores_are_those_of_the_library(folder, tmp_path):
    assert (
        score(
            folder, "--classes", NAMES, "--scores", "mcm,energy", "--output", tmp_path / "o.parquet"
        )
        == 0
    )
    model = load_backbone("tiny-vit", device="cpu")
    pixels = torch.stack([model.preprocess(i.read()) for i in open_sources([folder])[0].items()])
    table = pd.read_parquet(tmp_path / "o.parquet")
    for d in zero_shot(model, NAMES.split(","), ("mcm", "energy")):
        expected = d.score(model.encode_images(pixels).numpy())
        assert np.allclose(table[d.name], expected, atol=1e-4)


# decisions


def test_the_line_is_kept_and_decides(folder, detector, tmp_path, capsys):
    decider = load_detector(detector)
    assert decider.line.n_id == 60 and decider.line.tpr == 0.8
    assert with_detector(detector, folder, "--output", tmp_path / "o.parquet") == 0
    assert "is accepted with probability 80% or more" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "o.parquet")
    assert ((table["max_logit"] >= decider.line.value) == (table["decision"] == "known")).all()
    assert (table["decision"] == "known").mean() == decider.line.achieved


def test_a_line_from_texts_promises_nothing(tmp_path, capsys):
    file = tmp_path / "t.safetensors"
    words = ["decide", "--classes", NAMES, "--texts", NAMES, "--output", str(file), *MODEL]
    assert main(words) == 0
    assert "how many pictures of either kind it accepts is not known" in capsys.readouterr().out
    assert load_detector(file).line.n_task == 3


def test_files_are_sorted_and_none_is_lost(folder, detector, tmp_path, capsys):
    here = tmp_path / "in"
    for p in folder.rglob("*.png"):
        (here / p.parent.name).mkdir(parents=True, exist_ok=True)
        (here / p.parent.name / p.name).write_bytes(p.read_bytes())
    before = {p.read_bytes() for p in here.rglob("*.png")}
    where = ["--keep-known", tmp_path / "good", "--move-unknown", tmp_path / "out"]
    assert (
        with_detector(detector, here, "--output", tmp_path / "o.parquet", *where, "--dry-run") == 0
    )
    assert "would move" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert with_detector(detector, here, "--output", tmp_path / "o.parquet", *where) == 0
    table = pd.read_parquet(tmp_path / "o.parquet")
    unknown = {n.rpartition("/")[2] for n in table.loc[table["decision"] == "unknown", "image_id"]}
    assert {p.name for p in (tmp_path / "out").rglob("*.png")} == unknown != set()
    assert len(list((tmp_path / "good").rglob("*.png"))) == 60 - len(unknown)
    after = [p.read_bytes() for d in (here, tmp_path / "out") for p in d.rglob("*.png")]
    assert len(after) == 60 and set(after) == before


def test_several_detectors_share_one_pass(folder, detector, tmp_path):
    model = load_backbone("tiny-vit", device="cpu")
    [mcm] = zero_shot(model, NAMES.split(","), "mcm")
    other = save_detector(mcm, tmp_path / "mcm.safetensors", model)
    assert (
        with_detector(detector, folder, "--detector", other, "--output", tmp_path / "o.parquet")
        == 0
    )
    assert {"mcm", "max_logit"} <= set(pd.read_parquet(tmp_path / "o.parquet").columns)
    resnet = load_backbone("tiny-resnet", device="cpu")
    [foreign] = zero_shot(resnet, NAMES.split(","), "energy")
    save_detector(foreign, tmp_path / "foreign.safetensors", resnet)
    assert (
        with_detector(
            detector,
            folder,
            "--detector",
            tmp_path / "foreign.safetensors",
            "--output",
            tmp_path / "x.parquet",
        )
        == 2
    )


# many processes, some of which die


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# a process that a script has put into the background inherits that Ctrl-C is ignored
LISTENS = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from oodnb.command.main import main\n"
    "sys.exit(main(sys.argv[1:]))"
)


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-c", LISTENS, *map(str, words)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tiny_pictures(top, count):
    "Two hundred files, linked to as often as it takes."
    top.mkdir()
    for i in range(200):
        picture(i).save(top / f"base-{i:03d}.png")
    for i in range(200, count):
        os.link(top / f"base-{i % 200:03d}.png", top / f"{i:06d}.png")
    return top


# runs in one process what is killed at random blocks, as kill -9 does, and begins again
KILLED = """
import os, random, signal, sys
from oodnb.command.main import main
import oodnb.scoring.run as run
chance, count, score_block = random.Random(int(sys.argv[1])), [0], run.score_block
def dying(*given):
    count[0] += 1
    if chance.random() < float(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return score_block(*given)
run.score_block = dying
run._Keeper.__init__.__defaults__ = (256, 1.0)
for shard in sys.argv[3].split(","):
    number = shard.partition("/")[0]
    words = [w.replace("SHARD", shard).replace("NUMBER", number) for w in sys.argv[4:]]
    assert main(words) == 0, words
"""


def carried_through(folder, detector, out, shards, workers, dying, rate):
    "So many processes with so many shards; some die at random and are begun again."
    common = [
        "score",
        folder,
        "--detector",
        detector,
        "--device",
        "cpu",
        "--quiet",
        "--workers",
        "0",
    ]
    words = [*common, "--shard", "SHARD", "--output", out / "part-NUMBER.parquet"]
    own = [",".join(f"{k}/{shards}" for k in range(w, shards, workers)) for w in range(workers)]
    deaths, going, tries = 0, {}, dict.fromkeys(range(workers), 0)
    waiting = list(range(workers))
    while waiting or going:
        while waiting and len(going) < 2:
            w = waiting.pop(0)
            tries[w] += 1
            p = rate if w < dying and tries[w] <= 2 else 0.0
            seed = str(1000 * w + tries[w])
            given = [seed, str(p), own[w], *map(str, words)]
            going[w] = subprocess.Popen([sys.executable, "-c", KILLED, *given], env=environment())
        for w, process in list(going.items()):
            if (code := process.poll()) is not None:
                del going[w]
                if code:
                    assert code == -signal.SIGKILL
                    deaths += 1
                    waiting.append(w)
        time.sleep(0.05)
    return deaths


@pytest.mark.parametrize(
    "count, shards, workers, dying",
    [
        (10_000, 20, 4, 2),
        pytest.param(100_000, 100, 8, 4, marks=pytest.mark.skipif(not SLOW, reason="OODNB_SLOW=1")),
    ],
)
def test_killed_at_random_and_the_same_bytes_in_the_end(
    count, shards, workers, dying, detector, tmp_path
):
    top = tiny_pictures(tmp_path / "in", count)
    assert with_detector(detector, top, "--output", tmp_path / "one.parquet") == 0
    deaths = carried_through(top, detector, tmp_path, shards, workers, dying, 0.08)
    assert deaths >= dying
    parts = [str(p) for p in sorted(tmp_path.glob("part-*.parquet"))]
    assert len(parts) == shards and not list(tmp_path.glob("*.unfinished"))
    assert main(["join", *parts, "--output", str(tmp_path / "joined.parquet")]) == 0
    assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "one.parquet").metadata.num_rows == count


def test_a_part_is_idempotent_and_join_says_what_is_missing(folder, detector, tmp_path, capsys):
    part = lambda k: (
        folder,
        "--shard",
        f"{k}/3",
        "--batch-size",
        8,
        "--output",
        tmp_path / f"{k}.parquet",
    )
    for k in (0, 2):
        assert with_detector(detector, *part(k)) == 0
    stamp, bytes_ = (
        os.stat(tmp_path / "0.parquet").st_mtime_ns,
        (tmp_path / "0.parquet").read_bytes(),
    )
    assert with_detector(detector, *part(0)) == 0
    assert os.stat(tmp_path / "0.parquet").st_mtime_ns == stamp
    assert with_detector(detector, *part(0), "--restart") == 0
    assert (tmp_path / "0.parquet").read_bytes() == bytes_
    parts = [str(tmp_path / f"{k}.parquet") for k in (0, 2)]
    capsys.readouterr()
    assert main(["join", *parts, "--output", str(tmp_path / "all.csv")]) == 2
    assert (
        "1 of 3 parts are missing: 1. Run oodnb score with --shard 1/3" in capsys.readouterr().err
    )
    assert main(["join", *parts, "--output", str(tmp_path / "all.csv"), "--partial"]) == 3
    with_detector(
        detector, folder, "--shard", "1/3", "--batch-size", 4, "--output", tmp_path / "1.parquet"
    )
    assert (
        main(["join", *parts, str(tmp_path / "1.parquet"), "--output", str(tmp_path / "all.csv")])
        == 2
    )
    assert "not of one run: their block differs" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_loses_nothing(ending, detector, tmp_path):
    top = tiny_pictures(tmp_path / "in", 6000)
    words = [
        "score",
        top,
        "--detector",
        detector,
        "--device",
        "cpu",
        "--output",
        tmp_path / "o.parquet",
    ]
    process = start(*words)
    while not list((tmp_path / "o.parquet.unfinished").glob("[0-9]*.parquet")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(ending)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "what is finished is kept" in said
    kept = sum(
        pq.ParquetFile(p).metadata.num_rows
        for p in (tmp_path / "o.parquet.unfinished").glob("[0-9]*.parquet")
    )
    assert 2048 <= kept < 6000 and not (tmp_path / "o.parquet").exists()
    again = start(*words)
    assert f"{kept:,} of them from before" in again.communicate(timeout=120)[0]
    assert with_detector(detector, top, "--output", tmp_path / "one.parquet") == 0
    assert (tmp_path / "o.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


# memory


def many_ids(count, whole=False):
    def items():
        for i in range(count):
            yield Item(f"{i:09d}.png", picture)

    return Source("ids", items, whole)


def test_planning_takes_no_memory():
    count = 10_000_000 if SLOW else 300_000
    tracemalloc.start()
    seen = sum(len(block.items) for block in deal([many_ids(count)], 64, (17, 1000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen in range(count // 1000 - 64, count // 1000 + 65) and peak < 2_000_000


def part_of_ids(path, k, of, count, block=64):
    schema = schema_of({"position": "int64", "image_id": "string", "mcm": "double"})
    facts = {
        "columns": {"position": "int64", "image_id": "string", "mcm": "double"},
        "shard": [k, of],
    }
    schema = schema_of(facts["columns"], facts)
    with table_writer(path, schema) as write:
        for start in range(0, count, 2_000_000):
            positions = np.arange(start, min(count, start + 2_000_000))
            positions = positions[positions // block % of == k]
            ids = pa.array(positions).cast(pa.string())
            write(pa.table([pa.array(positions), ids, pa.array(positions / 7)], schema=schema))


def test_joining_takes_no_memory(tmp_path):
    count, of = (10_000_000, 50) if SLOW else (1_000_000, 20)
    for k in range(of):
        part_of_ids(tmp_path / f"{k}.parquet", k, of, count)
    pool = pa.default_memory_pool()
    pool.release_unused()
    before = pa.total_allocated_bytes()
    peak = [0]
    tracemalloc.start()
    real = pq.ParquetWriter.write_table

    def watched(self, *given, **more):
        peak[0] = max(peak[0], pa.total_allocated_bytes() - before)
        return real(self, *given, **more)

    pq.ParquetWriter.write_table = watched
    try:
        found = join_parts([tmp_path / f"{k}.parquet" for k in range(of)], tmp_path / "all.parquet")
    finally:
        pq.ParquetWriter.write_table = real
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found["rows"] == count and peak[0] < 30_000_000 and traced < 20_000_000
    last = -1
    with pq.ParquetFile(tmp_path / "all.parquet") as file:
        for batch in file.iter_batches(100_000, columns=["position"]):
            positions = batch.column(0).to_numpy()
            assert positions[0] == last + 1 and (np.diff(positions) == 1).all()
            last = int(positions[-1])
    assert last == count - 1


def test_whole_shards_go_to_one_process():
    sources = [many_ids(100, True) for _ in range(7)]
    for k in range(3):
        found = {block.start // PLACES for block in deal(sources, 8, (k, 3))}
        assert found == set(range(k, 7, 3))
    positions = [b.start for k in range(9) for b in deal(sources, 8, (k, 9))]
    assert len(positions) == len(set(positions)) == 7 * 13


# what is wrong, said before long work


@pytest.mark.parametrize(
    "words, said",
    [
        (["no/such", "--classes", NAMES], "There is no no/such"),
        (["FOLDER", "--classes", "cat"], "names 1 class"),
        (["FOLDER", "--classes", "cat,cat"], "names 'cat' twice"),
        (["FOLDER"], "Say what is known"),
        (["FOLDER", "--classes", NAMES, "--detector", "x"], "one of the two"),
        (["EMPTY", "--classes", NAMES], "holds no pictures"),
        (["FOLDER", "--detector", "BROKEN"], "holds no detector"),
        (["FOLDER", "--detector", "none.safetensors"], "There is no file"),
        (["FOLDER", "--classes", NAMES, "--output", "o.xlsx"], "says no form"),
        (["FOLDER", "--classes", NAMES, "--shard", "3"], "write K/N, counted from 0"),
        (["FOLDER", "--classes", NAMES, "--shard", "3/3"], "from 0/3 to 2/3"),
        (["FOLDER", "--classes", NAMES, "--shard", "0/3"], "writes a part, which is Parquet"),
        (["FOLDER", "--classes", NAMES, "--batch-size", "0"], "--batch-size is 0"),
        (["FOLDER", "--classes", NAMES, "--scores", "mcn"], "Unknown score 'mcn'"),
        (["FOLDER", "--classes", NAMES, "--device", "cuda:7"], "is not available"),
        (["FOLDER", "--classes", NAMES, "--move-unknown", "x"], "needs a table"),
        (["FOLDER", "-", "--classes", NAMES], "give it alone"),
        (["zip.zip", "--classes", NAMES], "Unpack it first"),
        (["s3://bucket/x", "--classes", NAMES], "s3"),
    ],
)
def test_wrong_words(words, said, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "zip.zip").write_bytes(b"PK")
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 40)
    places = {
        "FOLDER": folder,
        "EMPTY": tmp_path / "empty",
        "BROKEN": tmp_path / "broken.safetensors",
    }
    code = main(["score", *(str(places.get(w, w)) for w in words)])
    assert code == 2 and said in capsys.readouterr().err


def test_a_model_that_cannot_be_had(folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--backbone", "ViT-B-16-quickgelu", "--pretrained", "openai"]
    assert main(["score", str(folder), "--classes", NAMES, *words]) == 2
    assert "are not here and could not be downloaded" in capsys.readouterr().err


def test_sorting_into_what_is_scored_is_refused(folder, detector, tmp_path, capsys):
    words = [folder, "--output", tmp_path / "o.parquet", "--move-unknown", folder / "out"]
    assert with_detector(detector, *words) == 2
    assert (
        "would be scored itself" in capsys.readouterr().err
        and not (tmp_path / "o.parquet").exists()
    )


def test_settings_that_changed_are_refused(folder, tmp_path, capsys):
    out = ["--output", tmp_path / "o.parquet"]
    assert score(folder, "--classes", NAMES, *out) == 0
    assert score(folder, "--classes", "red,green", *out) == 2
    assert "was made with other settings" in capsys.readouterr().err
    assert score(folder, "--classes", "red,green", *out, "--restart") == 0


# Windows, by construction


def test_names_have_slashes_on_every_system(monkeypatch):
    from pathlib import PureWindowsPath

    import oodnb.scoring.sources as sources

    monkeypatch.setattr(sources, "Path", PureWindowsPath)
    assert sources._shown("a\\b\\c.png") == "a/b/c.png"
    assert not sources.is_address("C:\\pictures") and not sources.is_address("C://pictures")


def test_no_signal_of_posix_is_needed(folder, tmp_path, monkeypatch):
    "Windows has SIGTERM, and no resource, fcntl or SIGKILL."
    code = (
        "import sys, signal\n"
        "for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "del signal.SIGKILL, signal.SIGUSR1\n"
        "from oodnb.command.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["score", folder, "--classes", NAMES, "--output", tmp_path / "o.parquet", *MODEL]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "o.parquet")) == 60


# the light installation


def test_scoring_needs_no_notebook_package(folder, tmp_path):
    code = (
        "import sys\n"
        "from oodnb.ground.extras import EXTRAS\n"
        "extras = ' '.join(v for k, v in EXTRAS.items() if k not in ('cloud', 'blip')).split()\n"
        "more = 'nbformat nbclient nbconvert traitlets zmq tornado fastcore sklearn'.split()\n"
        "for name in [*extras, *more]: sys.modules[name] = None\n"
        "from oodnb.command.main import main\n"
        "import oodnb\n"
        "oodnb.OODClassifier, oodnb.run_benchmark, oodnb.metrics_table, oodnb.load_dataset\n"
        "assert main(['run', 'zeroshot_imagenet']) == 2\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [
        "score",
        folder,
        "--classes",
        NAMES,
        "--output",
        tmp_path / "o.parquet",
        "--report",
        tmp_path / "o.html",
        *MODEL,
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'oodnb[notebooks]'" in done.stderr
    assert (tmp_path / "o.html").is_file()


@pytest.mark.parametrize(
    "module",
    [
        "oodnb.evidence.figures",
        "oodnb.views.chart",
        "oodnb.running.kernel",
        "oodnb.explore",
        "oodnb.data.corruptions",
    ],
)
def test_what_needs_an_extra_names_the_command(module):
    code = (
        "import sys\n"
        "for name in 'matplotlib jupyter_client ipywidgets seaborn'.split():\n"
        "    sys.modules[name] = None\n"
        f"import {module}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "pip install 'oodnb[notebooks]'" in done.stderr.splitlines()[-1]


# drift


def test_the_stated_rate_of_false_alarms():
    chance, alarms, draws = np.random.default_rng(0), np.zeros(3), 1500
    rates = (0.1, 0.05, 0.01)
    for _ in range(draws):
        line = threshold_at_tpr(chance.normal(size=99), 0.9)
        known = line.decide(chance.normal(size=300)).tolist()
        for i, rate in enumerate(rates):
            alarms[i] += watch_unknown(known, line, 300, rate)["alarm"].iloc[0]
    spread = 3 * np.sqrt(np.array(rates) / draws)
    assert (alarms / draws <= np.array(rates) + spread).all() and (alarms[:2] / draws > 0.03).all()


def test_watch_reads_tables_and_their_line(folder, detector, tmp_path, capsys):
    assert with_detector(detector, folder, "--output", tmp_path / "o.parquet") == 0
    words = ["watch", str(tmp_path / "o.parquet"), "--window", "20"]
    assert main([*words, "--figure", str(tmp_path / "f.png")]) in (0, 4)
    assert (
        "one window in 100" in capsys.readouterr().out
        and (tmp_path / "f.png").stat().st_size > 5000
    )
    assert main([*words, "--expected", "0.001"]) == 4
    score(folder, "--classes", NAMES, "--output", tmp_path / "plain.parquet")
    assert main(["watch", str(tmp_path / "plain.parquet")]) == 2
    assert "holds no decisions" in capsys.readouterr().err
