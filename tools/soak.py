"""Look for what breaks, for minutes and with a seed: kills, corrupted files, two runners at once,
damaged archives, and (first) every call to the system that can fail.

`python tools/soak.py --minutes 20 --seed 1`; what it finds is kept in runs/soak as a file, and
`python tools/soak.py --again FILE` repeats it. Exit code 1 when something was found."""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

import jobs  # noqa: E402  (tests/faults)
import test_archives as archives  # noqa: E402
from server import tar_bytes, zip_bytes  # noqa: E402
from test_faults_everywhere import run_faults  # noqa: E402


class Found(Exception):
    pass


def child(job, home):
    """The job in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgrp()
            job(home)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def reference(name, work):
    home = work / f"reference-{name}"
    return jobs.JOBS[name](home), jobs.tree(home)


def check(name, home, value, files):
    made = jobs.JOBS[name](home)
    if not jobs.same(made, value):
        raise Found(f"{name}: another result")
    if (after := jobs.tree(home)) != files:
        odd = {n for n in after.keys() | files if after.get(n) != files.get(n)}
        raise Found(f"{name}: other files: {sorted(odd)}")


def killed(chance, work):
    """kill -9 at any moment, once or several times; then the same command."""
    name, home = chance.choice(list(jobs.JOBS)), work / "home"
    value, files = reference(name, work)
    for _ in range(chance.randrange(1, 4)):
        pid = child(jobs.JOBS[name], home)
        time.sleep(chance.uniform(0, 0.8))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for left in home.rglob(".tmp*"):  # swept after a day
        left.unlink()
    check(name, home, value, files)


def together(chance, work):
    """Two or three runners at once."""
    name, home = chance.choice(["extraction", "training", "prepare"]), work / "home"
    value, files = reference(name, work)
    pids = []
    for _ in range(chance.randrange(2, 4)):
        pids.append(child(jobs.JOBS[name], home))
        time.sleep(chance.uniform(0, 0.2))
    if codes := [code for code in (os.waitpid(pid, 0)[1] for pid in pids) if code]:
        raise Found(f"{name}: {len(codes)} of {len(pids)} runners failed")
    check(name, home, value, files)


def corrupted(chance, work):
    """Random bytes in any file that is kept: refused by name, or made again, and never used."""
    name, home = chance.choice(["extraction", "training"]), work / "home"
    value, _ = reference(name, work)
    jobs.JOBS[name](home)
    kept = sorted(p for p in home.rglob("*") if p.is_file() and p.stat().st_size > 8)
    path = chance.choice(kept)
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data))
    for k in range(start, min(len(data), start + chance.choice([1, 1, 8, 4096]))):
        data[k] ^= chance.randrange(1, 256)
    path.write_bytes(data[: chance.choice([len(data)] * 3 + [start])])
    try:
        made = jobs.JOBS[name](home)
    except jobs.RAW as error:
        raise Found(f"{name}, {path.name}: {type(error).__name__}: {error}") from error
    except Exception as error:
        if path.name not in str(error):
            raise Found(f"{name}: the error does not name {path.name}: {error}") from error
    else:
        if not jobs.same(made, value):
            raise Found(f"{name}: {path.name} was damaged and used")


def hostile(chance, work):
    """Archives with damage: what comes out is the same, or nothing."""
    kind = chance.choice(["gz", "bz2", "xz", "zip"])
    data = bytearray(
        zip_bytes(archives.FILES) if kind == "zip" else tar_bytes(archives.FILES, kind)
    )
    last = data.index(b"PK\1\2") if kind == "zip" else len(data)
    for _ in range(chance.randrange(1, 5)):
        data[chance.randrange(4, last)] ^= chance.randrange(1, 256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    if archives.outcome(bytes(data), work / "home", f"a.{kind}") == "other":
        raise Found(f"a damaged {kind} unpacks to other files")


SCENES = {scene.__name__: scene for scene in (killed, together, corrupted, hostile)}


def play(scene, seed):
    """One scene; what it found, or None."""
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SCENES[scene](random.Random(seed), work)
    except Found as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


def keep(case):
    folder = ROOT / "runs" / "soak"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case['scene']}-{case['seed']}.json"
    path.write_text(json.dumps(case, indent=1) + "\n")
    print(f"{path}: {case['found'].strip().splitlines()[-1]}", flush=True)


def soak(minutes, seed, faults):
    end, chance, counts, bad = time.monotonic() + 60 * minutes, random.Random(seed), {}, 0
    if faults and (report := run_faults(Path(tempfile.mkdtemp()), 1, *jobs.JOBS)):
        print(f"{report['tried']} calls to the system failed, {len(report['found'])} found")
        for number, found in enumerate(report["found"]):
            keep({"scene": "faults", "seed": number, "found": str(found)})
        bad += len(report["found"])
    while time.monotonic() < end:
        scene, number = chance.choice(list(SCENES)), chance.randrange(10**9)
        counts[scene] = counts.get(scene, 0) + 1
        if found := play(scene, number):
            bad += 1
            keep({"scene": scene, "seed": number, "found": found})
    print(f"seed {seed}: {', '.join(f'{n} {s}' for s, n in counts.items())}; {bad} found")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-faults", action="store_true", help="without the calls that fail")
    parser.add_argument("--again", metavar="FILE", help="a case in runs/soak")
    asked = parser.parse_args()
    if asked.again:
        case = json.loads(Path(asked.again).read_text())
        if case["scene"] == "faults":
            sys.exit(f"{case['found']}: run python tests/faults/jobs.py as tests do")
        found = play(case["scene"], case["seed"])
        print(found or "nothing was found this time")
        sys.exit(bool(found))
    sys.exit(bool(soak(asked.minutes, asked.seed, not asked.no_faults)))


if __name__ == "__main__":
    main()
