"""How far apart do trainings of class forgetting end that differ by one rounding?

    python benchmarks/forget_spread.py                12 single classes, 3 seeds, 6 trainings each
    python benchmarks/forget_spread.py --classes 3    three classes of a data set at once
    python benchmarks/forget_spread.py --keep best    the best step instead of the last
    python benchmarks/forget_spread.py --steps 1000 --trials 10   as in the shorter paper notebooks

On the embedded world, by the protocol. Printed are, in points of accuracy (the score in its own
unit): numbers of one task and one seed, numbers of one task averaged over the seeds as the rows of
the paper notebooks are, and means over tasks of one seed and of all. The last line is the spread
over seeds, for comparison. How large the numbers of two equal runs may differ follows from the
second block; `oodnb.running.one_run` takes its tolerances for forgetting from there.
"""

import argparse
import warnings
from dataclasses import replace
from functools import partial

import pandas as pd

from oodnb.forget.experiment import (
    MEASURES,
    equal_spread,
    equal_trainings,
    forget_plan,
    forget_world,
)


def trained(options):
    "One table of equal trainings per seed, together."
    found = {name: load() for name, load in forget_plan("mini", device="cpu").items()}
    world = forget_world("mini", found)
    lengths = dict(steps=options.steps, max_trials=options.trials, keep=options.keep)
    make = lambda *task: world.task(*task, replace(world.settings(*task), **lengths))
    equal = partial(equal_trainings, world, world.tasks(options.classes), make, options.times)
    return pd.concat([equal(seed) for seed in options.seeds], ignore_index=True)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=1, help="forgotten at once, 1 or 3")
    parser.add_argument("--times", type=int, default=6, help="equal trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000, help="per trial")
    parser.add_argument("--trials", type=int, default=100, help="at most")
    parser.add_argument("--keep", default="last", choices=("last", "best"))
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    table, measures = trained(options), list(MEASURES)
    each = [equal_spread(part) for _, part in table.groupby("seed")]
    rows = table.groupby(["training", "dataset", "names"])[measures].mean().reset_index()
    print("one seed, mean of the seeds")
    print((sum(each) / len(each)).round(3).to_string())
    print("rows: means over the seeds")
    print(equal_spread(rows).round(3).to_string())
    seeds = table[table["training"] == 0].groupby(["dataset", "names"])[measures].var()
    print("one task, deviation over seeds")
    print((seeds.mean() ** 0.5).round(3).to_string())
    return table


if __name__ == "__main__":
    main()
