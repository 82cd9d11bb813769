"""The rehearsal rehearsed: a small world is found by the catalogue and refused without permission,
every format of weights is read, two notebooks reach their end at scale paper, and the tables of
reductions, work and command lines name nothing that does not exist. All of it, with every
notebook, is `make rehearse`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from oodnb.checks.random_weights import narrow_config
from oodnb.checks.rehearsal import (
    chosen,
    command_lines,
    commands_page,
    line_parameters,
    line_words,
    on_stage,
    outcome_table,
    paper_rates,
    paper_work,
    planned,
    projected,
    reduced,
    reductions,
    rehearse_run,
    say_outcomes,
    set_stage,
)
from oodnb.data import catalogue
from oodnb.reproduce import _parser, main
from oodnb.running.plan import check_parameters, find_notebooks, plan_run, read_parameters

pytestmark = pytest.mark.rehearsal
JOB = Path(__file__).with_name("rehearsal_job.py")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return set_stage(tmp_path_factory.mktemp("rehearsal") / "stage", say=lambda line: None)


@pytest.fixture(scope="module")
def found(stage):
    told = subprocess.run(
        [sys.executable, str(JOB), str(stage.folder)],
        env=os.environ | stage.environment,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return json.loads(told.stdout.splitlines()[-1])


def test_a_short_list_is_refused_unless_it_is_opened(found):
    assert set(found["closed"]) == {"ImageNet", "NINCO", "StanfordDogs"}
    assert "instead of 50,000" in found["closed"]["ImageNet"]
    assert found["sets"]["ImageNet/test"][:2] == ["ImageNet", 1000]
    count, different = found["opened"]
    assert count == 64 and different.startswith("64 images instead of 5,879")


def test_every_data_set_of_the_catalogue_is_there(found):
    names = {place.split("/")[0] for place in found["sets"]}
    assert names >= set(catalogue.entries()) - {"PCAM"}
    assert all(count for _, count, _ in found["sets"].values())
    assert all(mode == "RGB" for *_, modes in found["sets"].values() for mode in modes)


def test_every_format_of_weights_is_read(found):
    told = found["weights"]
    assert told["ViT-B-16-quickgelu"] == [512, [14, 14]] and told["RN50-quickgelu"][0] == 1024
    assert told["ViT-L-14-quickgelu"] == [768, [16, 16]] and told["by its shapes"] == [512, [7, 7]]
    assert told["blip-base"] == told["blip-large"] == [256, None]
    assert told["context"] == 50 and told["branch"] == 16 and told["caption"] != [""]
    assert told["decoder"][0] == 512 and told["decoder"][1] > 55
    assert found["words"] == 400 and found["descriptors"] == 998


@pytest.mark.parametrize("name", ["hftt_medical", "toe_density"])
def test_a_notebook_reaches_its_end(stage, name):
    with on_stage(stage):
        outcome = rehearse_run(planned(name, stage))
    assert outcome.ran, outcome.error
    assert outcome.memory_mb and outcome.rows > 0
    assert str(stage.folder) in str(planned(name, stage).folder)


def test_a_failing_notebook_is_told(stage):
    with on_stage(stage):
        outcome = rehearse_run(planned("toe_density", stage, {"descriptors": "missing.json"}))
    assert not outcome.ran and "missing.json" in outcome.error
    assert "0 of 1 ran" in say_outcomes(outcome_table([outcome]))


def test_nothing_of_the_users_is_touched(stage):
    before = dict(os.environ)
    with on_stage(stage):
        assert os.environ["OODNB_HOME"].startswith(str(stage.folder))
        assert os.environ["OODNB_DATA"].startswith(str(stage.folder))
    assert dict(os.environ) == before
    assert set_stage(stage.folder, say=pytest.fail) == stage


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no rehearsal"):
        set_stage(tmp_path)


def test_narrow_towers_keep_what_notebooks_see():
    for name, grid, wide in (("ViT-B-16", 14, 512), ("ViT-L-14-quickgelu", 16, 768)):
        config = narrow_config(name)
        vision = config["vision_cfg"]
        assert vision["image_size"] // vision["patch_size"] == grid and config["embed_dim"] == wide


def test_reductions_name_parameters_that_exist():
    notebooks = find_notebooks()
    for name, own in reductions().groupby("notebook"):
        if name == "*":
            continue
        declared = read_parameters(notebooks[name])
        full = check_parameters(
            declared, {k: json.loads(v) for k, v in own[["parameter", "value"]].values}, name
        )
        for line in own.itertuples():
            assert full[line.parameter] == json.loads(line.value)
            assert declared[line.parameter].default == json.loads(line.instead_of), line
    for name in notebooks:
        assert reduced(name).get("rehearse", False) is (name == "mini_clip")


def test_every_notebook_with_a_paper_scale_has_its_work_counted():
    rates = paper_rates()["seconds"]
    assert set(paper_work()["unit"]) <= set(rates)
    uncounted = {"claims", "mini_clip", "mini_language", "mini_sprites", "scoreboard"}
    assert {name for name in chosen() if projected(name)[0] is None} == uncounted
    assert paper_work()["megabytes"].max() < 20_000


@pytest.mark.parametrize("line", command_lines(), ids=lambda line: line.line)
def test_every_command_line_is_answered(line):
    if not line.notebook:
        assert line.note, "a line that is not reproduced says why"
        return
    if line.notebook.startswith("oodnb "):
        _parser().parse_args(line_words(line))
    else:
        plan_run(line.notebook, line_parameters(line), "paper")
    assert line.options and line.command


def test_the_readmes_lines_are_all_there():
    lines = {line.line for line in command_lines()}
    wanted = [f"locoop-train-{shots}" for shots in (1, 2, 4, 8, 16)] + [
        "locoop-eval",
        "locoop-demo",
    ]
    models = ("clip-base", "clip-large", "blip-base", "blip-large")
    wanted += [f"hftt-{way}-{model}" for way in ("train", "mcm") for model in models]
    wanted += ["clipn-train-ViT-B-16", "clipn-train-ViT-B-32", "clipn-zero-shot"]
    wanted += [f"toe-{level}" for level in ("word", "description", "caption")]
    wanted += [f"toe-ready-{level}" for level in ("word", "description", "caption")]
    wanted += ["toe-study-ImageNet-10", "toe-study-ImageNet-20", "toe-noise-off"]
    sets = ("StanfordCars", "StanfordDogs", "Caltech101", "OxfordFlowers")
    ways = [(kind, backbone) for kind in ("single", "multi") for backbone in ("RN50", "ViT-B-16")]
    wanted += [f"forget-{kind}-{backbone}-{name}" for kind, backbone in ways for name in sets]
    assert set(wanted) <= lines


def test_the_page_of_the_command_lines_is_that_of_the_table():
    page = Path(__file__).parents[1] / "data" / "COMMANDS.md"
    assert page.read_text("utf-8") == commands_page(command_lines()), (
        "data/commands.csv changed: write commands_page(command_lines()) to data/COMMANDS.md"
    )


def test_the_command(capsys):
    assert main(["rehearse", "toe_densty"]) == 2
    assert "Did you mean 'toe_density'" in capsys.readouterr().err
    assert main(["rehearse", "--jobs", "0"]) == 2
    assert "--jobs is 0" in capsys.readouterr().err
    assert main(["rehearse", "--lines", "clip"]) == 2


def test_the_table_says_what_is_projected():
    table = pd.DataFrame(
        [["scoreboard", True, 3.0, 0, 0, 100, None, None, ""]],
        columns=[
            "notebook",
            "ran",
            "seconds",
            "rows",
            "compared",
            "memory_mb",
            "hours",
            "gigabytes",
            "error",
        ],
    )
    assert paper_rates()["basis"] in say_outcomes(table) and "?" in say_outcomes(table)
