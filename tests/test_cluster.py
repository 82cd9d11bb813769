"""Runs and features on a Dask cluster of real processes: workers that are killed, that leave, that
come late; nothing is lost or doubled."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from papers import COLUMNS, ROWS, ended, gone, only_folder, start, wait_for, where, write

from oodnb.backbones import load_backbone
from oodnb.running import cluster as clusters
from oodnb.running.cluster import connect, read_needs, spread_runs
from oodnb.datasets import load_dataset
from oodnb.features import extract
from oodnb.running.state import last_time, read_json
from oodnb.reproduce import main
from oodnb.running.plan import plan_run
from oodnb.pipeline.shards import extract_on_workers

dask = pytest.importorskip("dask", reason="the extra scale is not installed")
distributed = pytest.importorskip("distributed", reason="the extra scale is not installed")
psutil = pytest.importorskip("psutil", reason="the extra scale is not installed")

RESULT = f"""from pathlib import Path
with open(Path(out).parents[1] / "log", "a") as log: log.write(f"{{Path(out).parent.name}}\\n")
lines = ["{COLUMNS}"]
for i, m in enumerate(("auroc", "aupr_in")):
    lines.append(f"locoop,demo,mcm,mini,mini,mini-near,{{m}},{{40 + seed + i}},oodnb,,,{{scale}},x")
(Path(out) / "rows.csv").write_text("\\n".join(lines) + "\\n")"""
WAIT_ONCE = """import time
first = not (Path(out) / "begun").exists()
(Path(out) / "begun").touch()
if first: time.sleep(200)"""
KILLS_ITS_WORKER = """import os, time
import psutil
os.kill(psutil.Process(os.getppid()).ppid(), 9)
time.sleep(200)"""

OWN_KEYS = clusters._own_keys


@pytest.fixture(scope="module")
def client():  # other processes connect to it by its address
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_own_keys", lambda distributed: None)
        with connect("local", ["", ""]) as client:
            yield client


@pytest.fixture
def address(client):
    client.wait_for_workers(2, timeout=120)
    return client.scheduler.address


def printed(capsys, papers, name, out):
    capsys.readouterr()
    assert main(["table", name, "--out", str(out)]) == 0
    return capsys.readouterr().out.replace(str(out), "")


def begun(papers, address, *names):
    """A cluster that has begun the run steps: the command, and what its process file says."""
    process = start(papers, "run", "steps", *names, "--dask", address)
    wait_for(lambda: any((papers.parent / "runs").glob("steps/*/begun")), "the run to begin")
    return process, read_json(only_folder(papers, "steps") / "process.json")


def test_a_worker_that_dies_loses_and_doubles_nothing(address, papers, capsys):
    write(papers / "steps.ipynb", RESULT, WAIT_ONCE)
    write(papers / "other.ipynb", RESULT)
    runs, alone = papers.parent / "runs", papers.parent / "alone"
    planned = plan_run("steps", notebooks=papers, out=alone)
    planned.folder.mkdir(parents=True)
    (planned.folder / "begun").touch()
    assert main(["run", "*", "--notebooks", str(papers), "--out", str(alone)]) == 0
    process, running = begun(papers, address, "other")
    os.kill(psutil.Process(running["pid"]).ppid(), signal.SIGKILL)
    code, said = ended(process)
    assert code == 0, said
    assert gone(running["pid"]) and gone(running["kernel_pid"]), "the first attempt lives on"
    assert (
        "steps: its worker is gone, it runs again" in said
        and said.count("steps: done in") == said.count("other: done in") == 1
        and "Traceback" not in said
    )
    assert sorted((runs / "log").read_text().split()) == ["other", "steps", "steps"]
    for name in ("steps", "other"):
        (whole,) = (alone / name).glob("*/rows.csv")
        here = only_folder(papers, name)
        assert (
            here.name == whole.parent.name
            and (here / "rows.csv").read_bytes() == whole.read_bytes()
        )
        assert set(read_json(here / "manifest.json")["files"]) == set(
            read_json(whole.parent / "manifest.json")["files"]
        )
        assert printed(capsys, papers, name, runs) == printed(capsys, papers, name, alone)
    assert main(["status", *where(papers)]) == 0 and not list(runs.glob(".shared-*"))


def test_a_machine_that_shuts_down_hands_its_run_on(address, papers):
    write(papers / "steps.ipynb", RESULT, WAIT_ONCE)
    process, running = begun(papers, address)
    for pid in (
        running["kernel_pid"],
        running["pid"],
        psutil.Process(running["pid"]).ppid(),
    ):  # the run feels SIGTERM before its worker does
        os.kill(pid, signal.SIGTERM)
    code, said = ended(process)
    assert (
        code == 0
        and "steps: its worker is gone, it runs again" in said
        and said.count("steps: done in") == 1
    )
    assert (papers.parent / "runs" / "log").read_text().split() == ["steps", "steps"]


def test_interrupted_it_stops_what_it_has_started(address, papers):
    write(papers / "sleeps.ipynb", "import time; time.sleep(200)")
    write(papers / "count.ipynb", ROWS)
    process = start(papers, "run", "sleeps", "--dask", address)
    runs = papers.parent / "runs"
    try:
        wait_for(lambda: any(runs.glob("sleeps/*/process.json")), "the kernel")
        running = read_json(only_folder(papers, "sleeps") / "process.json")
    finally:
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
    assert code == 130 and "interrupted" in said
    wait_for(lambda: gone(running["pid"]) and gone(running["kernel_pid"]), "the run to stop", 60)
    assert main(["run", "count", "--dask", address, *where(papers)]) == 0


def listening(pid):
    """(process, address) of every socket on which a process or one below it takes connections."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return {
        (" ".join(process.cmdline())[-60:], connection.laddr.ip)
        for process in tree
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }


def test_nobody_on_another_machine_can_connect_to_what_was_started(papers):
    write(papers / "sleeps.ipynb", "import time; time.sleep(200)")
    process = start(papers, "run", "sleeps", "--dask", "local", "--jobs", "2")
    runs = papers.parent / "runs"
    try:
        wait_for(lambda: any(runs.glob("sleeps/*/process.json")), "the kernel")
        kernel = read_json(only_folder(papers, "sleeps") / "process.json")["kernel_pid"]
        wait_for(lambda: psutil.Process(kernel).net_connections("inet"), "its ports")
        found = listening(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        ended(process)
    assert len({name for name, _ in found}) >= 3, found  # the command, workers, the kernel
    assert {address for _, address in found} <= {"127.0.0.1", "::1"}, found


def test_a_cluster_of_its_own_speaks_tls_where_it_can(monkeypatch):
    pytest.importorskip("cryptography", reason="the extra scale is not installed")
    monkeypatch.setattr(clusters, "_own_keys", OWN_KEYS)  # the shared cluster does without
    with connect("local", ["", ""]) as own:
        assert own.scheduler.address.startswith("tls://127.0.0.1:")
        assert own.submit(sum, [1, 2]).result() == 3
        stranger = distributed.Security.temporary()
        with pytest.raises(OSError):
            distributed.Client(own.scheduler.address, timeout=3, security=stranger)


def test_a_run_that_somebody_else_holds_is_executed_once(address, papers):
    write(papers / "slow.ipynb", RESULT, "import time; time.sleep(3)")
    write(papers / "other.ipynb", RESULT)
    both = [
        start(papers, "run", "slow", "other"),
        start(papers, "run", "slow", "other", "--dask", address),
    ]
    results = [ended(process) for process in both]
    assert [code for code, _ in results] == [0, 0], results
    assert sorted((papers.parent / "runs" / "log").read_text().split()) == ["other", "slow"]
    assert (
        sum(said.count("done in") for _, said in results) == 2
        and sum(said.count("nothing to do") for _, said in results) == 2
    )


def dask_process(tmp_path, *words):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dask",
            *words,
            "--scheduler-file",
            str(tmp_path / "scheduler.json"),
            "--no-dashboard",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )


def test_when_the_scheduler_dies_nothing_stays_behind(papers, tmp_path):
    write(papers / "sleeps.ipynb", "import time; time.sleep(200)")
    cluster = [
        dask_process(tmp_path, "scheduler", "--host", "127.0.0.1", "--port", "0"),
        dask_process(tmp_path, "worker", "--nthreads", "1", "--local-directory", str(tmp_path)),
    ]
    try:
        wait_for((tmp_path / "scheduler.json").is_file, "the scheduler")
        process = start(papers, "run", "sleeps", "--dask", str(tmp_path / "scheduler.json"))
        wait_for(lambda: any((tmp_path / "runs").glob("sleeps/*/process.json")), "the kernel")
        running = read_json(only_folder(papers, "sleeps") / "process.json")
        cluster[0].kill()
        code, said = ended(process)
        assert (
            code == 1
            and "sleeps: the Dask scheduler went away before the run ended" in said
            and "Traceback" not in said
        )
        wait_for(
            lambda: gone(running["pid"]) and gone(running["kernel_pid"]), "the run to stop", 60
        )
    finally:
        for process in cluster:
            process.terminate()
            process.wait(60)


def test_failures_and_deaths_are_reported_in_words(papers, capsys):
    write(papers / "bad.ipynb", "1 / 0")
    write(papers / "deadly.ipynb", KILLS_ITS_WORKER)
    write(papers / "count.ipynb", ROWS)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        assert main(["run", "bad", "deadly", "count", "--dask", "local", *where(papers)]) == 1
    out, err = capsys.readouterr()
    assert "bad failed in cell 3 (`1 / 0`): ZeroDivisionError: division by zero" in err
    assert (
        "deadly: every worker that took it died with it, 1 in all (out of memory?)" in err
        and "2 of 3 runs failed: " in err
        and "Traceback" not in err
    )
    assert "count: done in" in out and (only_folder(papers, "count") / "rows.csv").is_file()


def test_local_workers_have_a_gpu_each(papers, capsys):
    write(papers / "one.ipynb", ROWS)
    write(papers / "two.ipynb", ROWS)
    threads = os.environ.get("OMP_NUM_THREADS")
    assert (
        main(
            [
                "run",
                "one",
                "two",
                "--dask",
                "local",
                "--gpus",
                "GPU-a,GPU-b",
                "--needs",
                "GPU=1",
                *where(papers),
            ]
        )
        == 0
    )
    manifests = [last_time(papers.parent / "runs" / name) for name in ("one", "two")]
    assert {m["device"]["visible"] for m in manifests} == {"GPU-a", "GPU-b"} and {
        m["device"]["threads"] for m in manifests
    } == {threads}
    assert "2 workers with GPU=1 on 1 machine, up to 2 runs at a time" in capsys.readouterr().out


def test_runs_wait_for_a_worker_with_what_they_need(papers, tmp_path):
    write(papers / "count.ipynb", ROWS)
    job, said, seen, workers = (
        plan_run("count", notebooks=papers, out=tmp_path / "runs"),
        [],
        [],
        [],
    )
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster:
        file = tmp_path / "scheduler.json"
        file.write_text(f'{{"address": "{cluster.scheduler_address}"}}')

        def join(running, waiting):
            seen.append((running, waiting))
            if not workers:
                workers.append(
                    dask_process(
                        tmp_path,
                        "worker",
                        "--nthreads",
                        "1",
                        "--resources",
                        "GPU=1",
                        "--local-directory",
                        str(tmp_path),
                    )
                )

        try:
            with connect(file) as client:
                assert list(
                    spread_runs(
                        client, [job], watch=join, say=said.append, needs=read_needs(["GPU=1"])
                    )
                ) == [(job, job)]
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait(60)
    assert seen[0] == ([], [job]) and job.done and "count: done in" in said[-1]


@pytest.mark.parametrize(("words", "message"), [
    (["--dask", "local", "--needs", "GPU"], "write NAME=AMOUNT"),
    (["--needs", "GPU=1"], "give its address with --dask"),
    (["--dask", "tcp://127.0.0.1:9", "--jobs", "2"], "bring their own threads and GPUs"),
    (["--dask", "no-such-host"], "No Dask scheduler answers at 'no-such-host'"),
])  # fmt: skip
def test_wrong_usage_starts_nothing(papers, capsys, words, message):
    write(papers / "count.ipynb", ROWS)
    assert main(["run", "count", *words, *where(papers)]) == 2
    assert message in capsys.readouterr().err and not (papers.parent / "runs").exists()


def test_without_dask_everything_else_works(papers, capsys, monkeypatch):
    write(papers / "count.ipynb", ROWS)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["run", "count", "--dask", "local", *where(papers)]) == 2
    assert "pip install 'oodnb[scale]'" in capsys.readouterr().err
    assert main(["list", *where(papers)]) == 0


def test_features_from_workers_are_the_same_bytes_also_when_one_dies(client, address, tmp_path):
    def near():
        return load_dataset("mini-near").subset(range(160))

    clip = partial(load_backbone, "mini")
    options = dict(batch_size=16, local=True, workers=0, progress=False)
    alone = Path(extract(clip(), near(), cache=tmp_path / "alone", **options).about["path"])
    killed = []

    def kill():
        wait_for(
            lambda: any((tmp_path / "shared").glob("*/parts-local/0*.safetensors")),
            "the first part",
        )
        victim = next(iter(client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    watcher = threading.Thread(target=kill)
    watcher.start()
    shared = extract_on_workers(client, clip, near, cache=tmp_path / "shared", chunk=32, **options)
    watcher.join()
    assert (
        killed
        and shared.about["source"] == "computed"
        and Path(shared.about["path"]).name == alone.name
    )
    names = {p.name for p in alone.iterdir() if p.is_file()}
    assert (
        names
        == {"global.safetensors", "global.json", "local.safetensors", "local.json"}
        == {p.name for p in Path(shared.about["path"]).iterdir() if p.is_file()}
    )
    for name in names:
        assert (alone / name).read_bytes() == (Path(shared.about["path"]) / name).read_bytes(), name


def test_workers_that_would_make_other_features_are_refused(client, address, tmp_path):
    seen = tmp_path / "called"

    def backbone():
        first = not seen.exists()
        seen.touch()
        return load_backbone("tiny-vit" if first else "tiny-resnet")

    with pytest.raises(RuntimeError, match=re.escape("would make other features of mini-near")):
        extract_on_workers(
            client,
            backbone,
            partial(load_dataset, "mini-near"),
            cache=tmp_path / "cache",
            progress=False,
        )
