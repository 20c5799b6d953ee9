"""Images are found, named and refused as they should be, wherever they lie."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from vision.config import DataOptions
from vision.errors import DataError
from vision.sources import BadImageError, open_source, read_image, to_mode


def pack(path, root, mode, parts=("train", "val")):
    with tarfile.open(path, mode) as archive:
        for part in parts:
            archive.add(root / part, part)
    return path


def everything(source):
    return [(np.asarray(image), label) for image, label in map(source.load, range(len(source)))]


def same(a, b):
    return len(a) == len(b) and all(la == lb and np.array_equal(x, y) for (x, la), (y, lb) in zip(a, b))


@pytest.mark.parametrize(("name", "mode"), [("all.tar", "w"), ("all.tar.gz", "w:gz"), ("all.tar.xz", "w:xz")])
@pytest.mark.parametrize("part", ["train", "val"])
def test_an_archive_holds_what_its_folder_holds(name, mode, part, images, tmp_path):
    archive = open_source(DataOptions(data_dir=str(pack(tmp_path / name, images, mode))), part)
    folder = open_source(DataOptions(data_dir=str(images)), part)
    assert folder.classes == archive.classes == ("across", "down", "plain")
    assert len(folder) == (24 if part == "train" else 12)
    assert same(everything(folder), everything(archive))


def test_a_tar_of_each_class(images, tmp_path):
    """ImageNet's layout: a tar of tars, or a folder of tars."""
    for kind in ("across", "down", "plain"):
        with tarfile.open(tmp_path / f"{kind}.tar", "w") as archive:
            for file in sorted((images / "train" / kind).iterdir()):
                archive.add(file, file.name)
    with tarfile.open(tmp_path / "train.tgz.tar", "w") as outer:
        for kind in ("across", "down", "plain"):
            outer.add(tmp_path / f"{kind}.tar", f"{kind}.tar")
    (tmp_path / "train.tgz.tar").rename(tmp_path / "whole")
    (tmp_path / "nested").mkdir()
    (tmp_path / "whole").rename(tmp_path / "nested" / "train.tar")
    wanted = everything(open_source(DataOptions(data_dir=str(images)), "train"))
    for place in (tmp_path, tmp_path / "nested" / "train.tar", tmp_path / "nested"):
        source = open_source(DataOptions(data_dir=str(place)), "train")
        assert source.classes == ("across", "down", "plain")
        found = everything(source)
        assert sorted(label for _, label in found) == sorted(label for _, label in wanted)
        assert {x.tobytes() + bytes([y]) for x, y in found} == {x.tobytes() + bytes([y]) for x, y in wanted}


def test_names_of_parts(own_images):
    shutil.move(own_images / "val", own_images / "test")
    options = DataOptions(data_dir=str(own_images))
    assert len(open_source(options, "val")) == 12
    assert len(open_source(DataOptions(data_dir=str(own_images), val_split="validation"), "val")) == 12
    assert len(open_source(DataOptions(data_dir=str(own_images / "train")), "train")) == 24
    with pytest.raises(DataError, match="there is no part other; it has test, train"):
        open_source(DataOptions(data_dir=str(own_images), val_split="other"), "val")


@pytest.mark.parametrize("mode", ["", "w", "w:gz"])
def test_parts_are_found_below_a_folder_of_the_archive(mode, own_images, tmp_path):
    """Archives hold one folder as a rule; were its parts not seen, the score would be that of the training."""
    (tmp_path / "outer").mkdir()
    shutil.move(own_images, tmp_path / "outer" / "stripes")
    place = tmp_path / "outer"
    if mode:
        place = pack(tmp_path / f"a.t{'gz' if 'gz' in mode else 'ar'}", place, mode, ("stripes",))
    options = DataOptions(data_dir=str(place))
    train, val = open_source(options, "train"), open_source(options, "val")
    assert (len(train), len(val), train.part, val.part) == (24, 12, "train", "val")
    with pytest.raises(DataError, match="there is no part other; it has train, val"):
        open_source(DataOptions(data_dir=str(place), val_split="other"), "val")


def test_a_place_without_parts_is_taken_whole(images):
    source = open_source(DataOptions(data_dir=str(images / "train")), "val")
    assert (len(source), source.part) == (24, "")


def test_class_map_and_known_classes_fix_the_order(images, tmp_path):
    (tmp_path / "map.txt").write_text("plain\ndown\nacross\n")
    options = DataOptions(data_dir=str(images), class_map=str(tmp_path / "map.txt"))
    assert open_source(options, "train").classes == ("plain", "down", "across")
    plain = everything(open_source(DataOptions(data_dir=str(images)), "val"))
    turned = everything(open_source(DataOptions(data_dir=str(images)), "val", ("plain", "down", "across")))
    assert [2 - label for _, label in plain] == [label for _, label in turned]
    with pytest.raises(DataError, match=r"--class-map none.txt: cannot be read"):
        open_source(DataOptions(data_dir=str(images), class_map="none.txt"), "train")


REFUSED = {
    "nothing": (lambda root: "", "give a folder or an archive of images with --data-dir"),
    "absent": (lambda root: root / "none", "there is no such folder or archive"),
    "empty class": (
        lambda root: (root / "train" / "zebra").mkdir() or root,
        "no image in the class folder zebra",
    ),
    "no image": (lambda root: [f.unlink() for f in root.rglob("*.png")] and root, "no image in"),
    "text": (lambda root: (root / "x.tar").write_text("no") and root / "x.tar", "cannot be read as an archive"),
    "text, packed": (
        lambda root: (root / "x.tgz").write_text("no") and root / "x.tgz",
        "read past its first",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, own_images):
    make, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        open_source(DataOptions(data_dir=str(make(own_images))), "train")


def test_a_class_that_is_not_known_is_refused(own_images, tmp_path):
    classes = open_source(DataOptions(data_dir=str(own_images)), "train").classes
    shutil.copytree(own_images / "val" / "down", own_images / "val" / "zebra")
    for place in (own_images, pack(tmp_path / "a.tar", own_images, "w"), pack(tmp_path / "a.tgz", own_images, "w:gz")):
        with pytest.raises(DataError, match="the class zebra is none of the 3 classes"):
            open_source(DataOptions(data_dir=str(place)), "val", classes)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_archive_is_named_with_the_last_good_member(mode, images, tmp_path):
    path = pack(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), images, mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    options = DataOptions(data_dir=str(path))
    if mode == "w":
        # timm scans the headers: what is cut shows at the member itself.
        with pytest.raises((DataError, BadImageError), match=r"a\.tar|train/"):
            everything(open_source(options, "train"))
    else:
        with pytest.raises(
            DataError, match=r"a\.tar\.gz: the archive cannot be read past train/.*png .*; fetch it again"
        ):
            open_source(options, "train")


@pytest.mark.parametrize("packed", [False, True])
def test_a_corrupt_image_is_named(packed, own_images, tmp_path):
    bad = own_images / "train" / "down" / "003.png"
    bad.write_bytes(bad.read_bytes()[:100])
    (own_images / "train" / "across" / "001.png").write_text("no image")
    place = pack(tmp_path / "a.tgz", own_images, "w:gz") if packed else own_images
    source = open_source(DataOptions(data_dir=str(place)), "train")
    failed = []
    for i in range(len(source)):
        try:
            source.load(i)
        except BadImageError as error:
            failed.append(str(error))
    assert len(failed) == 2
    assert any("across/001.png: no image in any known format" in text for text in failed)
    assert any("down/003.png: " in text for text in failed)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "RGB"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_every_mode_becomes_colour_or_grey(mode, in_chans, tmp_path):
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    assert image.mode == mode
    result = np.asarray(to_mode(image, in_chans)).reshape(16, 16, -1)
    assert result.shape[2] == in_chans
    assert result.dtype == np.uint8
    if mode != "1":
        assert np.abs(result.astype(int) - ramp[..., None]).max() <= (4 if mode in ("P", "YCbCr") else 1)


def test_sixteen_bits_survive_a_file_and_floats_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png", 3)).max() == 30000 // 257
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(BadImageError, match=r"x.tiff: its pixels are floating-point numbers"):
        read_image(tmp_path / "x.tiff", 3)
    with pytest.raises(BadImageError, match="none.png"):
        read_image(tmp_path / "none.png", 3)


def test_transparent_palette_needs_no_warning(tmp_path, recwarn):
    image = Image.new("P", (4, 4))
    image.info["transparency"] = 0
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert to_mode(Image.open(buffer), 3).mode == "RGB"
    assert not list(recwarn)


def test_torchvision_layouts(tmp_path):
    with pytest.raises(DataError, match="expected torch/cifar10"):
        open_source(DataOptions(data_dir=str(tmp_path), dataset="torch/cifar"), "train")
    with pytest.raises(DataError, match="does not hold it whole"):
        open_source(DataOptions(data_dir=str(tmp_path), dataset="torch/cifar10"), "train")
    with pytest.raises(DataError, match="--dataset wds/x: expected nothing"):
        open_source(DataOptions(data_dir=str(tmp_path), dataset="wds/x"), "train")


@pytest.mark.slow
def test_cifar10(shared_data):
    path = shared_data / "vision" / "cifar10_jpeg.tar.gz"
    train = open_source(DataOptions(data_dir=str(path)), "train")
    val = open_source(DataOptions(data_dir=str(path)), "val", train.classes)
    assert (len(train), len(val)) == (50_000, 10_000)
    assert train.classes == tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    assert train.load(0)[0].size == (32, 32)
    assert val.name(9_999) == "test/truck/0999.jpg"
