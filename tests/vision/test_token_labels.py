"""Token labels: the part of the map that a crop shows, the targets, whole cells that change places, and a training."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vision import train
from vision.config import AugmentOptions
from vision.data import Preparation, seeded
from vision.sources import BadImageError
from vision.token_labels import CellMix, TokenLabels, augment, read_label_map, targets, token_loss

SIMBA = [
    "--model", "simba_small_mlp", "--model-kwargs.dims", "[16,16,16,16]", "--model-kwargs.depths", "[1,1,1,1]",
    "--model-kwargs.stem_dim", "8", "--img-size", "64", "--batch-size", "8", "--workers", "0", "--accelerator", "cpu",
    "--epochs", "2", "--warmup-epochs", "0", "--lr", "0.003",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_crop_takes_its_labels_along(seed):
    """An image whose pixels say where they are: the box says the same, mirrors included."""
    side = 200
    ramp = torch.arange(side) * 255 // (side - 1)
    pixels = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)], -1)
    image = Image.fromarray(pixels.to(torch.uint8).numpy())
    prepared = Preparation(
        img_size=(64, 64), in_chans=3, mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0, interpolation="bilinear"
    )
    transform = prepared.augmentation(AugmentOptions(color_jitter=0, vflip=0.5))
    maps = torch.zeros(2, 1, 2, 2)
    maps[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with seeded(seed):
        plain = transform(image)
    with seeded(seed):
        shown, labels = augment(transform, image, maps)
    assert torch.equal(shown, plain)  # labels do not change what is drawn
    across, down = bool(shown[0, 0, 0] > shown[0, 0, -1]), bool(shown[1, 0, 0] > shown[1, -1, 0])
    assert labels.maps[0, 0, 0, 0] == 1 + across + 2 * down
    left, top, right, lower = labels.box.tolist()
    ends = [(shown[0, 0, 0], shown[0, 0, -1], left, right, across), (shown[1, 0, 0], shown[1, -1, 0], top, lower, down)]
    for first, last, low, high, mirrored in ends:
        if mirrored:
            first, last = 1 - first, 1 - last
        assert abs(float(first) - low) < 0.03
        assert abs(float(last) - high) < 0.03


def test_targets_are_what_the_cells_show():
    maps = torch.zeros(1, 2, 1, 4, 4)
    maps[0, 0] = 5.0
    maps[0, 1, 0, :, 2:] = 1  # class 0 left, class 1 right
    whole, cells = targets(TokenLabels(maps, torch.tensor([[0.0, 0.0, 1.0, 1.0]])), 3, (2, 2))
    assert whole.shape == (1, 3)
    assert cells.shape == (1, 2, 2, 3)
    torch.testing.assert_close(cells.sum(-1), torch.ones(1, 2, 2))
    assert cells[0, :, 0].argmax(-1).tolist() == [0, 0]
    assert cells[0, :, 1].argmax(-1).tolist() == [1, 1]
    assert abs(float(whole[0, 0] / whole[0, 1]) - 1) < 0.7
    right, _ = targets(TokenLabels(maps, torch.tensor([[0.75, 0.0, 1.0, 1.0]])), 3, (2, 2))
    torch.testing.assert_close(right[0], torch.tensor([0.0, 5.0, 0.0]).softmax(0))


def test_whole_cells_change_places():
    random.seed(3)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 64, 64).clone()
    whole = torch.eye(4)
    cells = whole[:, None, None].expand(4, 8, 8, 4)
    seen = set()
    for _ in range(20):
        mixed, target, fields = CellMix(1.0, 1.0)(images, whole, cells)
        torch.testing.assert_close(fields.argmax(-1).float(), mixed[:, 0, ::8, ::8])
        torch.testing.assert_close(fields.mean((1, 2)), target)
        seen.add(round(float(target[0, 0]), 3))
    assert len(seen) > 5
    assert CellMix(0.0, 1.0)(images, whole, cells)[0] is images


def test_loss_is_that_of_both_heads():
    torch.manual_seed(0)
    logits, fields = torch.randn(2, 5), torch.randn(2, 3, 2, 5)
    whole, cells = torch.rand(2, 5).softmax(-1), torch.rand(2, 3, 2, 5).softmax(-1)

    def entropy(x, p):
        return -((0.9 * p + 0.02) * F.log_softmax(x, -1)).sum(-1).mean()

    expected = entropy(logits, whole) + 0.25 * entropy(fields, cells)
    torch.testing.assert_close(token_loss((logits, fields), whole, cells, 0.25, 0.1), expected)


def test_label_maps_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(BadImageError, match=r"a/x.jpg: it has no label map .*a/x.pt"):
        read_label_map(tmp_path, "somewhere/a/x.jpg")
    (tmp_path / "a").mkdir()
    torch.save(torch.zeros(5, 3), tmp_path / "a" / "x.pt")
    with pytest.raises(BadImageError, match=r"expected a tensor of shape \(2, k, rows, columns\), got \(5, 3\)"):
        read_label_map(tmp_path, "a/x.jpg")
    (tmp_path / "a" / "x.pt").write_text("no")
    with pytest.raises(BadImageError, match=r"x.pt: cannot be read as a label map"):
        read_label_map(tmp_path, "a/x.jpg")


@pytest.fixture
def label_maps(images, tmp_path):
    """A teacher that is right everywhere, in half precision as published."""
    for number, kind in enumerate(sorted(path.name for path in (images / "train").iterdir())):
        for image in (images / "train" / kind).iterdir():
            maps = torch.full((2, 2, 3, 3), 8.0, dtype=torch.float16)
            maps[0, 1], maps[1, 0], maps[1, 1] = 0.0, number, (number + 1) % 3
            folder = tmp_path / "maps" / kind
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(maps, folder / f"{image.stem}.pt")
    return tmp_path / "maps"


def test_training_with_token_labels(images, label_maps, tmp_path, capsys):
    words = ["--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", *SIMBA]
    assert train.main([*words, "--token-labels", str(label_maps), "--cutmix", "1"]) == 0
    losses = [float(line.split(",")[0]) for line in (tmp_path / "run" / "metrics.csv").read_text().split()[1:] if line]
    assert losses
    assert all(map(math.isfinite, losses))
    capsys.readouterr()
    for more, message in (
        (["--mixup", "0.8", "--bce-loss"], "--token-labels does not go with --mixup, --bce-loss"),
        (["--model", "vim_tiny_patch16_224", "--model-kwargs", "{}"], "has no head for every cell; the models simba_*"),
        (["--token-labels", "nowhere"], "--token-labels nowhere: there is no such folder"),
    ):
        assert train.main([*words, "--token-labels", str(label_maps), *more]) == 2
        assert message in capsys.readouterr().err
    next(label_maps.glob("*/003.pt")).unlink()
    assert train.main([*words, "--token-labels", str(label_maps)]) == 2
    assert "003.png: it has no label map" in capsys.readouterr().err
