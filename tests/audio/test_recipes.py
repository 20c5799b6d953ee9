"""Every published recipe, its network at full size, through two steps on folders laid out as the real sets are."""

import csv

import pytest
import torch

from audio import train
from audio.data import load_collection
from audio.files import write_audio
from audio.recipes import RECIPES

PUBLISHED = [name for name, recipe in RECIPES.items() if not recipe().data and not name.startswith("fsdd")]


def make_set(layout, folder):
    """A few short clips named and listed as Speech Commands is, or a folder of pieces of music."""
    if layout == "sc09":
        for digit in ("zero", "seven", "happy"):  # the last is no digit
            for speaker in ("0a7c2a8d", "1b4c9b89", "2aca1e72", "3bb68054"):
                save(folder / digit / f"{speaker}_nohash_0.wav", len(digit))
        (folder / "validation_list.txt").write_text("zero/1b4c9b89_nohash_0.wav\nhappy/1b4c9b89_nohash_0.wav\n")
        (folder / "testing_list.txt").write_text("zero/2aca1e72_nohash_0.wav\nseven/2aca1e72_nohash_0.wav\n")
    else:
        for i in range(4):
            save(folder / f"out{i:03d}.wav", i)
    return folder


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    hiss = torch.randn(640, generator=torch.Generator().manual_seed(seed))
    write_audio(path, 0.5 * torch.sin(torch.arange(640) * 0.1) + 0.05 * hiss, 16_000)


def test_official_lists_say_the_parts(tmp_path):
    collection = load_collection(make_set("sc09", tmp_path), "sc09")
    names = {part: sorted(r.name for r in getattr(collection, part)) for part in ("train", "validation", "test")}
    assert names["validation"] == ["zero/1b4c9b89_nohash_0.wav"]
    assert names["test"] == ["seven/2aca1e72_nohash_0.wav", "zero/2aca1e72_nohash_0.wav"]
    assert len(names["train"]) == 5
    assert collection.labels == ("seven", "zero")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_run(name, tmp_path):
    data = make_set(RECIPES[name]().recordings.layout, tmp_path / "data")
    words = ["--recipe", name, "--data", str(data), "--output", str(tmp_path / "runs"), "--accelerator", "cpu"]
    words += ["--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "1", "--samples", "0"]
    assert train.main([*words, "--recordings.chunk-seconds", "0.032"]) == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    with (run_dir / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    own = float(rows[0].get("bits_per_sample") or rows[0]["noise_error"])
    assert 0 < own < 20
    assert {"best.safetensors", "last.ckpt", "config.yaml", "metrics.csv"} <= {p.name for p in run_dir.iterdir()}
