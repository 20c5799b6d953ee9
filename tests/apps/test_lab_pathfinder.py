"""Pathfinder images: seeded, of the published sizes, and told apart by the rule that drew them."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from apps.lab import pathfinder
from apps.lab.pathfinder import SIZES, Pathfinder


def test_an_image_is_a_function_of_seed_and_number():
    pixels, joined = Pathfinder(32, seed=3)[5]
    again, label = Pathfinder(32, seed=3)[5]
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32, 32)
    assert pixels.max() == 255
    assert joined == label
    assert np.array_equal(pixels, again)
    assert not np.array_equal(pixels, Pathfinder(32, seed=3)[6][0])
    assert not np.array_equal(pixels, Pathfinder(32, seed=4)[5][0])


def test_images_are_those_of_the_authors_program():
    """Hashes of what drewlinsley/pathfinder (7b53886) draws when its random numbers come from the same generator, with
    the image scaling of the scipy that it was written for. Labels likewise."""
    published = {(32, 0): "79d52d8990bb", (32, 1): "dd582720c1df", (256, 0): "8de2bcc5e319"}
    for (size, index), want in published.items():
        pixels, _ = Pathfinder(size)[index]
        assert hashlib.sha256(pixels.tobytes()).hexdigest()[:12] == want, (size, index)


def test_sizes_at_which_most_paths_get_stuck_draw_what_they_drew():
    """Hashes of our own images from before masks were kept up dash by dash, when 32 and 256 were compared as above."""
    for (size, index), want in {(64, 0): "ad6935e7", (128, 0): "ee3b1562"}.items():
        assert hashlib.sha256(Pathfinder(size, seed=5)[index][0].tobytes()).hexdigest()[:8] == want, size


def test_both_answers_come_equally_often():
    labels = [int(np.random.default_rng([0, i]).integers(0, 2)) for i in range(400)]
    assert [Pathfinder(32)[i][1] for i in range(6)] == labels[:6]
    assert 160 < sum(labels) < 240


def test_circles_stand_on_the_ends_of_the_paths(monkeypatch):
    """The first on the beginning of a path, the second on the end of the same one exactly where the label says so."""
    drawn, paths = [], []
    circle, long_paths = pathfinder._circle, pathfinder._long_paths
    monkeypatch.setattr(pathfinder, "_circle", lambda size, at, r: drawn.append(at) or circle(size, at, r))
    monkeypatch.setattr(pathfinder, "_long_paths", lambda canvas: paths.append(long_paths(canvas)) or paths[-1])
    for index in range(8):
        drawn.clear()
        _, joined = Pathfinder(32)[index]
        begins, ends = paths[-1]
        first = begins.index(drawn[0])
        assert drawn[1] == ends[first if joined else 1 - first]


def test_paths_do_not_run_over_each_other():
    how = SIZES[32]
    canvas = pathfinder.Canvas(32, how, 1, np.random.default_rng(0))
    while pathfinder._long_paths(canvas) is None:
        canvas.image[:] = 0
    before = canvas.mask.copy()
    while not pathfinder._short_path(canvas):
        pass
    added = (canvas.mask > 0.9) & (before <= 0.3)
    assert added.sum() >= how.short_dashes * how.dash
    assert (canvas.mask >= before).all()


def test_files_have_the_layout_of_the_archive_and_a_stopped_call_goes_on(tmp_path):
    images = Pathfinder(32)
    assert list(images.write(tmp_path, 3)) == [0, 1, 2]
    lines = (tmp_path / "metadata" / "0.npy").read_text().splitlines()
    for number, line in enumerate(lines):
        folder, name, index, label, *rest = line.split()
        pixels, joined = images[number]
        assert np.array_equal(np.asarray(Image.open(tmp_path / folder / name)), pixels)
        assert (int(index), int(label)) == (number, joined)
        assert rest == ["1.0", "14", "4", "2", "0.5", "1", "1"]
    stamp = (tmp_path / "imgs" / "0" / "sample_0.png").stat().st_mtime_ns
    assert list(images.write(tmp_path, 3)) == [0, 1, 2]
    assert stamp == (tmp_path / "imgs" / "0" / "sample_0.png").stat().st_mtime_ns


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="size=48, expected one of 32, 64, 128, 256"):
        Pathfinder(48)
