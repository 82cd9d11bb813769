"""Pictures as people really have them: every mode, damaged files, odd folders, the named benchmarks
when they are absent or different."""

import io
import os
import shutil
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from oodnb.data.catalogue import archives_of, entries
from oodnb.datasets import check_dataset, list_datasets, load_dataset
from oodnb.pictures import open_rgb


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("OODNB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OODNB_DATA", raising=False)


def picture(seed=0, size=(16, 12)):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )


def folder(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name, "PNG")
    return root


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def corner(image):
    return open_rgb(image).getpixel((0, 0))


# ---- modes

GREY = Image.new("L", (4, 3), 77)
HALF = Image.new("RGBA", (4, 3), (255, 0, 0, 128))
CLEAR = Image.new("LA", (4, 3), (0, 0))


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("1", (4, 3), 1), "PNG", (255, 255, 255)),
        (GREY, "PNG", (77, 77, 77)),
        (GREY, "JPEG", (77, 77, 77)),
        (CLEAR, "PNG", (255, 255, 255)),
        (HALF, "PNG", (255, 127, 127)),
        (HALF, "WEBP", (255, 127, 127)),
        (Image.new("I;16", (4, 3), 257 * 100), "PNG", (100, 100, 100)),
        (Image.new("I;16", (4, 3), 257 * 100), "TIFF", (100, 100, 100)),
        (Image.new("I", (4, 3), 257 * 100), "TIFF", (100, 100, 100)),
        (Image.new("F", (4, 3), 0.2), "TIFF", (51, 51, 51)),
        (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("RGB", (4, 3), "blue"), "GIF", (0, 0, 255)),
        (Image.new("RGB", (4, 3), "blue"), "PPM", (0, 0, 255)),
    ],
    ids=lambda value: getattr(value, "mode", None) or str(value),
)
def test_modes(image, kind, expected):
    opened = open_rgb(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (opened.mode, opened.size) == ("RGB", (4, 3))
    assert np.abs(np.subtract(opened.getpixel((0, 0)), expected)).max() <= 1


def test_cmyk_jpeg_is_not_inverted():
    assert (
        np.abs(
            np.subtract(
                corner(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)),
                (255, 0, 0),
            )
        ).max()
        <= 4
    )


def test_big_endian_sixteen_bit():
    big = Image.frombytes("I;16B", (2, 1), bytes([100, 100, 255, 255]))
    assert [p[0] for p in open_rgb(saved(big, "TIFF")).get_flattened_data()] == [100, 255]


def test_palette_with_transparency_is_put_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    assert list(open_rgb(saved(image, "PNG", transparency=0)).get_flattened_data()) == [
        (255, 255, 255),
        (200, 0, 0),
    ]
    assert list(
        open_rgb(saved(image, "PNG", transparency=bytes([255, 0]))).get_flattened_data()
    ) == [(10, 20, 30), (255, 255, 255)]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "TIFF"):
        assert corner(saved(frames[0], kind, save_all=True, append_images=frames[1:])) == (
            255,
            0,
            0,
        )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 8, 4))
    exif = image.getexif()
    exif[0x0112] = orientation
    upright = open_rgb(saved(image, "JPEG", exif=exif, quality=100))
    assert upright.size == ((16, 8) if orientation < 5 else (8, 16))
    bright = np.asarray(upright)[..., 0] > 128
    rows, columns = np.argwhere(bright).mean(0) > np.array(bright.shape) / 2
    assert (bool(columns), bool(rows)) == {
        1: (0, 0),
        2: (1, 0),
        3: (1, 1),
        4: (0, 1),
        5: (0, 0),
        6: (1, 0),
        7: (1, 1),
        8: (0, 1),
    }[orientation]


def test_broken_exif_does_not_matter():
    data = saved(picture(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 30).getvalue()
    assert open_rgb(io.BytesIO(data)).size == (16, 12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_truncated_files_are_named(tmp_path, kind):
    data = saved(picture(size=(64, 64)), kind).getvalue()
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut"):
        open_rgb(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff\xe0" + b"\0" * 40],
    ids=["empty", "text", "png", "jpeg"],
)
def test_garbage_is_named(tmp_path, data):
    (tmp_path / "garbage.jpg").write_bytes(data)
    with pytest.raises(ValueError, match="garbage.jpg"):
        open_rgb(tmp_path / "garbage.jpg")


def test_pixels_out_of_range_are_refused(tmp_path):
    Image.new("F", (2, 2), 300.0).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match="depth.tif.*300"):
        open_rgb(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match="is a folder"):
        open_rgb(tmp_path)


# ---- folders


def test_order_classes_and_hidden_files(tmp_path):
    folder(
        tmp_path,
        "b/2.png",
        "b/10.PNG",
        "a b/x/y.JPeG",
        "a/z.png",
        "a/._z.png",
        ".git/no.png",
        "__MACOSX/a/no.png",
        "a/.DS_Store.png",
    )
    images = load_dataset(tmp_path)
    assert images.ids == ["a/z.png", "a b/x/y.JPeG", "b/10.PNG", "b/2.png"]
    assert (images.class_names, list(images.labels)) == (["a", "a b", "b"], [0, 1, 2, 2])
    assert list(images.class_counts()) == [1, 1, 2]


def test_flat_and_mixed_folders(tmp_path):
    flat = load_dataset(folder(tmp_path / "flat", "1.png", "2.png"))
    assert (flat.class_names, list(flat.labels), flat.name) == ([], [-1, -1], "flat")
    with pytest.warns(UserWarning, match="1 pictures lie beside"):
        mixed = load_dataset(folder(tmp_path / "mixed", "cover.png", "cat/1.png"))
    assert dict(zip(mixed.ids, mixed.labels)) == {"cat/1.png": 0, "cover.png": -1}
    assert load_dataset(tmp_path / "mixed", classes=False).class_names == []


def test_classes_choose_order_and_names(tmp_path):
    root = folder(tmp_path, "n1/a.png", "n2/a.png", "n3/a.png")
    chosen = load_dataset(root, classes=["n3", "n1"])
    assert (chosen.ids, list(chosen.labels)) == (["n1/a.png", "n3/a.png"], [1, 0])
    merged = load_dataset(root, classes={"n1": "dog", "n2": "cat", "n3": "dog"})
    assert (merged.class_names, list(merged.labels)) == (["dog", "cat"], [0, 1, 0])
    for wrong, said in [
        (["n4"], "Unknown class folder 'n4'"),
        ("n1", "list of folders"),
        ([], "list of folders"),
        (["n1", "n1"], "twice"),
    ]:
        with pytest.raises(ValueError, match=said):
            load_dataset(root, classes=wrong)


def test_undecodable_formats_are_said(tmp_path):
    folder(tmp_path, "a.png")
    (tmp_path / "b.heic").write_bytes(b"?")
    with pytest.warns(UserWarning, match="heic cannot be decoded"):
        images = load_dataset(tmp_path)
    assert images.about["other_files"] == {".heic": 1}


def test_links(tmp_path):
    root = folder(tmp_path / "set", "a/1.png")
    folder(tmp_path / "elsewhere", "2.png")
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "a" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    images = load_dataset(root)
    assert images.ids == ["a/1.png", "a/broken.png", "b/2.png"]
    with pytest.raises(FileNotFoundError):
        images[1]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_text(tmp_path):
    folder(tmp_path, "ä.png")
    shutil.copy(tmp_path / "ä.png", os.fsencode(tmp_path) + b"/\xff.png")
    images = load_dataset(tmp_path)
    assert images.ids == ["ä.png", "\\xff.png"]
    assert images[1][0].size == (16, 12)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_forbidden_folder_is_named(tmp_path):
    root = folder(tmp_path / "set", "a/1.png", "b/2.png")
    (root / "b").chmod(0)
    try:
        with pytest.raises(PermissionError, match="Cannot list .*b"):
            load_dataset(root)
    finally:
        (root / "b").chmod(0o755)


def test_fingerprint_follows_contents_only(tmp_path):
    first = load_dataset(folder(tmp_path / "one", "a/1.png", "b/2.png"))
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    assert load_dataset(tmp_path / "two").fingerprint == first.fingerprint
    assert (
        load_dataset(tmp_path / "two", classes={"a": "x", "b": "y"}).fingerprint
        == first.fingerprint
    )
    assert load_dataset(tmp_path / "two", classes=["a"]).fingerprint != first.fingerprint
    before = (tmp_path / "two/a/1.png").stat()
    data = bytearray((tmp_path / "two/a/1.png").read_bytes())
    data[60] ^= 1
    (tmp_path / "two/a/1.png").write_bytes(data)
    os.utime(tmp_path / "two/a/1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_dataset(tmp_path / "two").fingerprint != first.fingerprint


def test_fingerprint_is_remembered(tmp_path, monkeypatch):
    root = folder(tmp_path / "set", "1.png")
    os.utime(root / "1.png", (1, 1))
    monkeypatch.setattr("oodnb.data.image_sets.time.time_ns", lambda: 2**62)
    first = load_dataset(root).fingerprint
    monkeypatch.setattr("oodnb.data.image_sets.file_digest", lambda path: pytest.fail("read again"))
    assert load_dataset(root).fingerprint == first


def test_wrong_paths(tmp_path, monkeypatch):
    folder(tmp_path / "holiday", "1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'holiday'"):
        load_dataset("./holyday")
    with pytest.raises(ValueError, match="is a file"):
        load_dataset(tmp_path / "holiday" / "1.png")
    with pytest.raises(ValueError, match="Did you mean 'Textures'"):
        load_dataset("texture")
    assert len(load_dataset("holiday")) == 1
    for nothing in ("", " ", None, 3):
        with pytest.raises(ValueError, match="give the name of a data set"):
            load_dataset(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures, only: no file"):
        load_dataset("./empty")


# ---- named benchmarks


@pytest.mark.parametrize("name", list(entries()))
def test_absent_benchmark_says_everything(tmp_path, name):
    entry = entries()[name]
    part = entry.splits.get("test") or next(iter(entry.splits.values()))
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name, part.name, root=tmp_path)
    message, archives = str(caught.value), archives_of(entry.part_of or name, part.name)
    facts = [
        f"{part.images:,}" if part.images else "",
        *(a.name for a in archives),
        *(c for a in archives for c in a.checksums),
        *(a.url or a.page for a in archives),
    ]
    for fact in (
        str(tmp_path / part.folders[0]),
        *facts,
        entry.homepage,
        entry.licence,
        "oodnb data prepare",
        "load_dataset('mini')",
    ):
        assert fact in message


def test_root_that_does_not_exist(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_dataset("SUN", root=tmp_path / "nowhere")
    monkeypatch.setenv("OODNB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_dataset("SUN")


def test_other_counts_are_refused_and_marked(tmp_path):
    folder(tmp_path, "SUN/images/a.png", "SUN/images/b.png", "dtd/images/banded/1.png")
    with pytest.raises(ValueError, match="2 images instead of 10,000"):
        load_dataset("SUN", root=tmp_path)
    images = load_dataset("sun", root=tmp_path, allow_different=True)
    assert (images.name, images.class_names, images.about["different"]) == (
        "SUN",
        [],
        "2 images instead of 10,000",
    )
    with pytest.raises(ValueError, match="1 class folders instead of 47"):
        load_dataset("Textures", root=tmp_path)
    assert list(list_datasets(tmp_path).loc[["SUN", "Places"], "ready"]) == [True, False]


def test_flat_imagenet_and_foreign_folders(tmp_path):
    folder(tmp_path, "ImageNet/val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ValueError, match="oodnb data prepare ImageNet sorts them"):
        load_dataset("ImageNet", root=tmp_path)
    folder(tmp_path, "ImageNet/val/dog/ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(ValueError, match="'dog' is no WordNet id"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_dataset("ImageNet", root=tmp_path, allow_different=True)


def test_check_reports_and_deletes_nothing(tmp_path):
    root = folder(tmp_path, "Places/images/a.png", "Places/images/b.png")
    (root / "Places/images/b.png").write_bytes(b"?")
    (root / "Places/images/list.txt").write_text("x")
    report = check_dataset("Places", root, progress=False)
    assert (report["ok"], report["found"], report["missing"], report["other_files"]) == (
        False,
        2,
        9998,
        {".txt": 1},
    )
    assert report["unreadable"] == [("b.png", "no picture format is recognised")]
    assert (root / "Places/images/b.png").exists()
    assert check_dataset(folder(tmp_path / "fine", "1.png"), progress=False)["ok"]
