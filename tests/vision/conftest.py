"""Tiny generated images for the tests of this folder: stripes along x, along y, or none."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = ("across", "down", "plain")


def draw(kind, rng, side=16):
    """Stripes of random colour, phase and noise, uint8, shape (side, side, 3)."""
    wave = 0.5 + 0.5 * np.sin(np.arange(side) * 2 * np.pi / 4 + rng.uniform(0, 6))
    field = {"across": np.tile(wave, (side, 1)), "down": np.tile(wave[:, None], (1, side)), "plain": 0.5}[kind]
    pixels = np.broadcast_to(field, (side, side))[..., None] * rng.uniform(0.5, 1, 3)
    return (255 * (0.8 * pixels + 0.2 * rng.uniform(size=(side, side, 3)))).astype(np.uint8)


def write_images(root, counts, side=16, classes=CLASSES):
    """root/part/class/number.png; `counts` is images a class by part."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for kind in classes:
            folder = root / part / kind
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw(kind, rng, side)).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A clean folder: 8 images a class to train, 4 to score. Not to be changed."""
    return write_images(tmp_path_factory.mktemp("images") / "stripes", {"train": 8, "val": 4})


@pytest.fixture
def own_images(tmp_path):
    """The same, to be spoiled."""
    return write_images(tmp_path / "stripes", {"train": 8, "val": 4})


@pytest.fixture(scope="session")
def command_env():
    """Environment of a subprocess that finds the checkout, installed or not."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


@pytest.fixture
def one_thread():
    """Sums in another order give other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TINY = (
    "--model", "vim_tiny_patch16_224", "--img-size", "16", "--model-kwargs.patch_size", "4",
    "--model-kwargs.embed_dim", "16", "--model-kwargs.depth", "1", "--batch-size", "8", "--workers", "0",
    "--accelerator", "cpu", "--epochs", "2", "--warmup-epochs", "0", "--lr", "0.003", "--crop-pct", "1.0",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny():
    """Words of a training command that takes a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory):
    """Run folder of such a training."""
    from vision import train

    output = tmp_path_factory.mktemp("trained")
    assert train.main(["--data-dir", str(images), "--output", str(output), "--experiment", "run", *TINY]) == 0
    return output / "run"
