"""What all benchmarks share: two ways of doing one thing, taken in turns in one run, and their
ratio with its spread, beside the machine and the commit, printed and written as JSON.

A single time says little on a machine that does other things too; a ratio of neighbours says
much. `compare` therefore takes the two ways in turns, `ours, theirs, ours, theirs, ...`, and keeps
the ratio of every turn: the median is the result, the quartiles are its spread. Seconds are
processor time on a CPU (waiting for others does not count) and wall time on a GPU, after what was
asked for has ended.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commit():
    "Short hash of the checkout, with a + where files differ from it; None without git."
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def about(device="cpu"):
    "Machine, libraries, commit and day."
    import torch

    shown = {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "commit": commit(),
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if str(device).startswith("cuda"):
        shown |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return shown


def _own_seconds():  # of all threads, and of processes that have ended
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def seconds_of(function, device="cpu"):
    "(seconds, result) of one call; with a GPU until it has ended."
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        start = time.perf_counter()
        result = function()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start, result
    start = _own_seconds()
    result = function()
    return _own_seconds() - start, result


def compare(name, ours, theirs, repeats=5, warm=1, device="cpu", labels=("ours", "theirs")):
    """One pair: {"name", "labels", "ours", "theirs" (seconds of each turn), "ratio" (theirs / ours,
    median of the turns), "low", "high" (its quartiles)}. Larger than 1: ours is faster."""
    for _ in range(warm):
        ours(), theirs()
    turns = [
        (seconds_of(ours, device)[0], seconds_of(theirs, device)[0]) for _ in range(max(1, repeats))
    ]
    return pair(name, [a for a, _ in turns], [b for _, b in turns], labels)


def pair(name, ours, theirs, labels=("ours", "theirs")):
    "The pair of seconds that were taken elsewhere, turn by turn."
    ratios = [b / max(a, 1e-9) for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "name": name,
        "labels": list(labels),
        "ours": ours,
        "theirs": theirs,
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
    }


def value(name, number, unit, note=""):
    "A number that is no ratio; None: not measured."
    return {"name": name, "value": number, "unit": unit, "note": note}


def say(pairs, values=()):
    "Lines for a person."
    width = max([len(p["name"]) for p in [*pairs, *values]], default=0)
    for p in pairs:
        ours, theirs = (statistics.median(p[side]) for side in ("ours", "theirs"))
        yield (
            f"{p['name']:<{width}}  {p['labels'][0]} {ours:8.3f} s   {p['labels'][1]} "
            f"{theirs:8.3f} s   {p['ratio']:5.2f}x [{p['low']:.2f}, {p['high']:.2f}]"
        )
    for v in values:
        number = "not measured" if v["value"] is None else f"{v['value']:,.6g} {v['unit']}"
        note = f"  ({v['note']})" if v["note"] else ""
        yield f"{v['name']:<{width}}  {number}{note}"


def options_of(parser, repeats=5):
    "The options that every benchmark has."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each pair")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    return parser


def report(benchmark, pairs, values=(), device="cpu", path=None):
    "Print, write, and return the whole result."
    found = about(device)
    cores = f"{found['machine']}, {found['threads']} threads, {found.get('gpu', found['device'])}"
    print(f"{benchmark}: {cores}, torch {found['torch']}, commit {found['commit']}")
    print(*say(pairs, values), sep="\n")
    result = {"benchmark": benchmark, "about": found, "pairs": pairs, "values": list(values)}
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return result
