"""What is kept and has changed since is noticed: one flipped bit in any file of any kind."""

import pytest
import torch
from papers import COLUMNS, only_folder, where, write
from safetensors.torch import save_file

from oodnb import mini
from oodnb.backbones import load_backbone
from oodnb.clipn.no_branch import NoBranch, load_no_branch, save_no_branch
from oodnb.ground.kept import Damaged, load_kept, save_kept
from oodnb.hftt.training import _Snapshots
from oodnb.methods.coop import PromptContext, load_context, save_context
from oodnb.pipeline.cache import Piece, read_part, write_part
from oodnb.pipeline.train import load_state, save_state
from oodnb.reproduce import main


def flip(path, back=3):
    data = bytearray(path.read_bytes())
    data[-back] ^= 1
    path.write_bytes(data)


def context(folder):
    backbone = load_backbone("tiny-vit")
    path = folder / "context.safetensors"
    save_context(path, PromptContext(backbone, ["dog", "cat"], length=2))
    return path, lambda: load_context(path, backbone)


def branch(folder):
    backbone = load_backbone("tiny-vit")
    path = folder / "branch.safetensors"
    save_no_branch(path, NoBranch(backbone), backbone)
    return path, lambda: load_no_branch(path, backbone)


def training(folder):
    path = folder / "training.safetensors"
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    save_state(path, optimizer, {"epochs": 2}, [{"loss": 1.0}])
    return path, lambda: load_state(path, optimizer, {"epochs": 2})


def vectors(folder):
    kept = _Snapshots(folder)
    kept.keep(3, torch.arange(8.0))
    (path,) = folder.glob("*.safetensors")
    return path, lambda: _Snapshots(folder).get(3, "cpu")


@pytest.mark.parametrize("kind", [context, branch, training, vectors])
def test_a_flipped_bit_is_refused_by_name(kind, tmp_path):
    path, read = kind(tmp_path)
    read()
    flip(path)
    with pytest.raises(Damaged, match=rf"{path.name} has changed since it was written"):
        read()


def test_a_changed_setting_is_noticed_too(tmp_path):
    path, read = training(tmp_path)
    path.write_bytes(path.read_bytes().replace(rb"loss\": 1.0", rb"loss\": 0.0"))
    with pytest.raises(Damaged):
        read()


def test_a_damaged_piece_of_features_is_none(tmp_path):
    piece = write_part(tmp_path, Piece(0, 2, {"global": torch.ones(2, 4)}, []))
    (path,) = tmp_path.glob("*.safetensors")
    assert torch.equal(read_part(path).tensors["global"], piece.tensors["global"])
    flip(path)
    assert read_part(path) is None


def test_files_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2)}, path, {"about": '{"a": 1}'})
    assert load_kept(path, "about")[1] == {"a": 1}
    save_file({"x": torch.ones(2)}, path)
    assert load_kept(path, "about", required=False)[1] == {}
    with pytest.raises((KeyError, TypeError)):
        load_kept(path, "about")


def test_the_same_contents_are_the_same_bytes(tmp_path):
    for name in "ab":
        facts = {"b": [1, 0.1], "a": float("inf")}
        save_kept(tmp_path / name, "k", {"y": torch.ones(2), "x": torch.zeros(3)}, facts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_kept(tmp_path / "a", "k")[1] == facts


def test_pictures_of_the_mini_world_that_were_damaged_are_painted_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path))
    painted = []

    def paint():
        painted.append(1)
        return {"pictures": torch.arange(400_000, dtype=torch.uint8)}

    true = torch.arange(400_000, dtype=torch.uint8)
    for _ in range(2):
        assert torch.equal(mini._kept("demo", paint)["pictures"], true) and len(painted) == 1
    path = tmp_path / "mini" / "demo.safetensors"
    data = bytearray(path.read_bytes())
    data[100_000:300_000] = bytes(200_000)
    for damaged in (data, data[:5000], b""):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged and is made again"):
            assert torch.equal(mini._kept("demo", paint)["pictures"], true)
    assert len(painted) == 4
    save_file({"pictures": true}, path)  # as earlier versions kept it
    assert torch.equal(mini._kept("demo", paint)["pictures"], true) and len(painted) == 4


def test_a_changed_number_is_not_shown_as_the_runs_own(tmp_path, capsys):
    papers = tmp_path / "papers"
    papers.mkdir()
    row = "locoop,demo,mcm,mini,mini,mini-near,auroc,59.9,oodnb,,,mini,x"
    table = f"{COLUMNS}\n{row}\n"
    text = f"from pathlib import Path\n(Path(out) / 'rows.csv').write_text({table!r})"
    write(papers / "count.ipynb", text)
    assert main(["run", "count", *where(papers)]) == 0
    rows, out = only_folder(papers, "count") / "rows.csv", ["--out", str(tmp_path / "runs")]

    def said(*words):
        capsys.readouterr()
        main([*words, *out])
        return capsys.readouterr().out

    page = tmp_path / "page.md"
    main(["report", "--to", str(page), *out])
    before = said("table", "count") + said("status") + page.read_text()
    assert "changed since" not in before and "changed after" not in before and "59.9" in before
    rows.write_text(rows.read_text().replace("59.9", "99.9"))
    assert "rows.csv` has changed since the run wrote it" in said("table", "count")
    assert "changed since it ran: rows.csv" in said("status")
    main(["report", "--to", str(page), *out])
    assert "changed afterwards: rows.csv" in page.read_text()
