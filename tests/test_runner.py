"""The runner when things go wrong: killed at any point, a full disk, two runners on one folder,
several runs at once."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from papers import COLUMNS, ROWS, command, ended, gone, only_folder, start, wait_for, where, write

from oodnb.running.state import last_time, read_json
from oodnb.reproduce import main

RESULT = f"""from pathlib import Path
lines = ["{COLUMNS}"]
for i, m in enumerate(("auroc", "aupr_in")):
    lines.append(f"locoop,demo,mcm,mini,mini,mini-near,{{m}},{{40 + seed + i}},oodnb,,,{{scale}},x")
(Path(out) / "rows.csv").write_text("\\n".join(lines) + "\\n")"""
COUNT = (
    "import os\nwith open(os.environ['OODNB_TEST_LOG'], 'a') as log: log.write(f'{os.getpid()}\\n')"
)
MEET = """import time
from pathlib import Path
(Path(out).parents[1] / f"here-{seed}").touch()
end = time.monotonic() + 200
here = Path(out).parents[1]
while len(list(here.glob("here-*"))) < 2 and time.monotonic() < end: time.sleep(0.05)
assert time.monotonic() < end, "the other run did not start beside this one\""""


def test_killed_at_any_point_it_ends_with_the_same_rows_and_tables(papers, capsys):
    write(papers / "steps.ipynb", "import time", RESULT, "time.sleep(0.5)")
    whole = papers.parent / "whole"
    assert main(["run", "steps", "--notebooks", str(papers), "--out", str(whole)]) == 0
    runs = papers.parent / "runs"
    points = ["request.json", "process.json", "rows.csv", "manifest.json"]
    for number, point in enumerate(points):
        began = time.time()
        process = start(papers, "run", "steps", "--force")
        wait_for(
            lambda: any(p.stat().st_mtime > began - 0.05 for p in runs.glob(f"steps/*/{point}")),
            point,
        )
        running = read_json(only_folder(papers, "steps") / "process.json")
        if number % 2 and running:
            os.kill(
                running["pid"], signal.SIGKILL
            )  # the run's own process: the command notices and says so
            code, said = ended(process)
            assert code in (0, 1) and (code == 0 or "was ended by signal 9" in said)
        else:
            process.kill()
            process.wait(60)
        for pid in running.values():
            if isinstance(pid, int):
                wait_for(lambda pid=pid: gone(pid), "the processes to stop", 60)
    assert main(["run", "steps", *where(papers)]) == 0
    folder, other = (
        only_folder(papers, "steps"),
        next(p for p in (whole / "steps").iterdir() if p.is_dir()),
    )
    assert folder.name == other.name
    assert (folder / "rows.csv").read_bytes() == (other / "rows.csv").read_bytes()
    assert (
        set(read_json(folder / "manifest.json")["files"])
        == set(read_json(other / "manifest.json")["files"])
        == {"executed.ipynb", "rows.csv"}
    )
    capsys.readouterr()
    printed = []
    for out in (runs, whole):
        assert main(["table", "steps", "--out", str(out)]) == 0
        printed.append(capsys.readouterr().out.replace(str(out), ""))
    assert printed[0] == printed[1] and "40.0" in printed[0]


def test_a_killed_process_takes_its_kernel_along(papers):
    write(papers / "sleeps.ipynb", "import time; time.sleep(100)")
    process = start(papers, "run", "sleeps")
    runs = papers.parent / "runs"
    try:
        wait_for(lambda: any(runs.glob("sleeps/*/process.json")), "the kernel")
        running = read_json(only_folder(papers, "sleeps") / "process.json")
        os.kill(running["pid"], signal.SIGKILL)
        code, said = ended(process)
    finally:
        process.kill()
    assert code == 1 and "was ended by signal 9" in said and "run the same command again" in said
    wait_for(lambda: gone(running["kernel_pid"]), "the kernel to stop", 60)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "(Path(out) / 'rows.csv').write_text('x' * 400_000)",
            "failed in cell 4 (`(Path(out) / 'rows.csv').write_text('x' * 400_000)`): "
            "OSError: [Errno 27] File too large",
        ),
        ("for line in range(50): print('x' * 9_000)", "failed: OSError: [Errno 27] File too large"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_and_the_next_run_is_whole(papers, cell, message):
    write(papers / "large.ipynb", "from pathlib import Path", cell)
    process = start(
        papers,
        "run",
        "large",
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    code, said = ended(process)
    assert code == 1 and message in said and "Traceback" not in said
    assert not (only_folder(papers, "large") / "done.json").exists()
    assert main(["run", "large", *where(papers)]) == 0


def test_a_full_disk(papers):
    """A file system of 300 kB, in a name space of its own: the run fails in words, and ends well
    once there is room."""
    write(
        papers / "large.ipynb",
        "from pathlib import Path",
        "(Path(out) / 'rows.csv').write_text('x' * 250_000)",
        "print('y' * 100_000)",
        "print('y' * 100_000)",
    )
    runs = papers.parent / "runs"
    runs.mkdir()
    script = (
        f"mount -t tmpfs -o size=300k none '{runs}' || exit 99; \"$@\"; echo code $?; "
        f"mount -o remount,size=9m '{runs}' || exit 99; \"$@\"; echo code $?; ls "
        f"'{runs}'/large/*"
    )
    if not shutil.which("unshare"):
        pytest.skip("no unshare here, so no small file system can be made without being root")
    words, environment = command(papers, "run", "large")
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no small file system can be made here: {done.stderr.strip()[-200:]}")
    assert (
        "\ncode 1\n" in done.stdout
        and "\ncode 0\n" in done.stdout
        and {"done.json", "rows.csv"} <= set(done.stdout.split())
    )
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_two_runners_on_one_folder_execute_it_once(papers, tmp_path):
    log = tmp_path / "log"
    write(papers / "slow.ipynb", COUNT, "import time; time.sleep(2)", ROWS)
    write(papers / "other.ipynb", COUNT, ROWS)
    os.environ["OODNB_TEST_LOG"] = str(log)
    try:
        both = [start(papers, "run", *names) for names in (("slow", "other"), ("slow", "other"))]
        results = [ended(process) for process in both]
    finally:
        del os.environ["OODNB_TEST_LOG"]
    assert [code for code, _ in results] == [0, 0]
    assert len(log.read_text().split()) == 2
    assert any(
        "slow: another runner is at it" in said or "other: another runner is at it" in said
        for _, said in results
    )
    assert (
        sum(said.count("done in") for _, said in results) == 2
        and sum(said.count("nothing to do") for _, said in results) == 2
    )


def test_several_runs_at_once_each_with_its_own_gpu(papers, capsys):
    write(papers / "one.ipynb", MEET, ROWS)
    write(papers / "two.ipynb", MEET.replace("{seed}", "two"), ROWS)
    assert main(["run", "one", "two", "--jobs", "2", "--gpus", "GPU-a,GPU-b", *where(papers)]) == 0
    manifests = [last_time(papers.parent / "runs" / name) for name in ("one", "two")]
    assert (
        {m["gpu"] for m in manifests}
        == {m["device"]["visible"] for m in manifests}
        == {"GPU-a", "GPU-b"}
    )
    assert "on GPU GPU-a" in capsys.readouterr().out


def test_the_manifest_tells_what_the_numbers_depend_on(papers):
    write(papers / "count.ipynb", ROWS)
    assert main(["run", "count", "-p", "seed", "3", "--gpus", "none", *where(papers)]) == 0
    manifest = last_time(papers.parent / "runs" / "count")
    assert manifest["seed"] == {"seed": 3} and manifest["parameters"]["rate"] == 0.5
    assert manifest["device"]["visible"] == "" and manifest["device"]["cores"] == os.cpu_count()
    assert {"oodnb", "python", "platform", "torch", "numpy"} <= set(manifest["versions"])
    assert set(manifest["hashes"]) == {"notebook"}  # it reaches no module of the package
    assert (
        manifest["seconds"] > 0
        and manifest["peak_memory_mb"] > 10
        and len(manifest["cell_seconds"]) == 3
    )


def test_status_tells_what_became_of_everything(papers, capsys):
    write(papers / "count.ipynb", ROWS)
    write(papers / "bad.ipynb", "1 / 0")
    assert main(["status", *where(papers)]) == 0
    assert "Nothing has been run yet" in capsys.readouterr().out
    assert main(["run", "count", *where(papers)]) == 0
    assert main(["status", "count", *where(papers)]) == 0
    assert main(["status", "count", "bad", *where(papers)]) == 3
    assert "not run" in capsys.readouterr().out
    assert main(["run", "bad", *where(papers)]) == 1
    assert main(["status", *where(papers)]) == 1
    bad, count = capsys.readouterr().out.splitlines()[-2:]
    assert (
        bad.split()[0] == "bad"
        and "cell 3: ZeroDivisionError: division by zero" in bad
        and "2/3" not in bad
    )
    assert count.split()[0] == "count" and " done " in count
    write(papers / "count.ipynb", ROWS, "2 + 2")
    assert main(["status", "count", *where(papers)]) == 3
    assert " outdated " in capsys.readouterr().out


def test_status_of_a_run_under_way(papers, capsys):
    write(papers / "waits.ipynb", "1 + 1", "import time; time.sleep(100)")
    process = start(papers, "run", "waits")
    try:
        wait_for(
            lambda: (
                "time.sleep"
                in "".join(
                    p.read_text() for p in (papers.parent / "runs").glob("waits/*/executing.ipynb")
                )
                and main(["status", "waits", *where(papers)]) == 3
                and " 3/4 " in capsys.readouterr().out
            ),
            "the last cell",
        )
        assert main(["status", "waits", *where(papers)]) == 3
        line = capsys.readouterr().out.splitlines()[1]
        assert (
            " running " in line
            and f"process {read_json(only_folder(papers, 'waits') / 'process.json')['pid']}" in line
        )
    finally:
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
    assert code == 130 and "interrupted" in said
    assert main(["status", "waits", *where(papers)]) == 3
    assert " interrupted " in capsys.readouterr().out


def test_another_kernel(papers, capsys, tmp_path, monkeypatch):
    write(
        papers / "count.ipynb", "import os\nassert os.environ['OODNB_TEST_KERNEL'] == 'mine'", ROWS
    )
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "mine",
        "language": "python",
        "env": {"OODNB_TEST_KERNEL": "mine"},
    }
    kernels = tmp_path / "jupyter" / "kernels"
    for name, text in {"mine": spec, "stats": spec | {"language": "R"}}.items():
        (kernels / name).mkdir(parents=True)
        (kernels / name / "kernel.json").write_text(json.dumps(text))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert main(["run", "count", "--kernel", "mien", *where(papers)]) == 2
    assert "Did you mean 'mine'?" in capsys.readouterr().err
    assert main(["run", "count", "--kernel", "stats", *where(papers)]) == 2
    assert "speaks R" in capsys.readouterr().err
    assert main(["run", "count", "--kernel", "mine", *where(papers)]) == 0
    assert last_time(papers.parent / "runs" / "count")["kernel"] == "mine"


def test_a_kernel_cleans_up_behind_itself(papers, tmp_path):
    """It stops without taking Python apart, but not before what was registered for the end."""
    end = tmp_path / "end.txt"
    first = (
        "import atexit, pathlib, tempfile\nfolder = "
        f"tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
        f"atexit.register(pathlib.Path({str(end)!r}).write_text, 'last words')"
    )
    write(papers / "tidy.ipynb", first, ROWS)
    before = set(tmp_path.iterdir())
    assert main(["run", "tidy", *where(papers)]) == 0
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"end.txt", "runs"}
    assert end.read_text() == "last words"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--gpus", "77"], "there is no GPU 77"),
        (["--kernel", "nothing"], "There is no Jupyter kernel 'nothing'"),
    ],
)
def test_wrong_usage_starts_nothing(papers, capsys, words, message):
    write(papers / "count.ipynb", ROWS)
    assert main(["run", "count", *words, *where(papers)]) == 2
    assert message in capsys.readouterr().err and not (papers.parent / "runs").exists()


def test_a_reader_that_goes_away(papers):
    write(papers / "count.ipynb", ROWS)
    words, environment = command(papers, "list")
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
