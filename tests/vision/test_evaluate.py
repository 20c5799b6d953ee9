"""Scores of a trained classifier: by the command, at other sizes, with other weights."""

import csv
import shutil

import pytest
import timm
import torch

import vision.models  # noqa: F401
from vision import evaluate, train
from vision.classifier import Classifier
from vision.config import EvaluateConfig


def run(run_dir, images, *words):
    return evaluate.main(["--checkpoint", str(run_dir), "--data-dir", str(images), "--workers", "0", *words])


def test_scores_are_those_of_the_training(trained, images, tmp_path, capsys):
    assert run(trained, images, "--results-file", str(tmp_path / "classes.csv")) == 0
    out = capsys.readouterr().out
    with (trained / "metrics.csv").open() as file:
        best = max(float(row["val_top1"]) for row in csv.DictReader(file))
    assert f"top-1 {best:.2f} %" in out
    assert "12 images, 3 classes; vim_tiny_patch16_224 at 16x16" in out
    with (tmp_path / "classes.csv").open() as file:
        recall = {row["class"]: float(row["recall"]) for row in csv.DictReader(file)}
    assert set(recall) == {"across", "down", "plain"}
    assert sum(recall.values()) / 3 == pytest.approx(best, abs=0.01)


def test_another_size_of_images(trained, images, capsys):
    assert run(trained, images, "--img-size", "48") == 0
    assert "at 48x48" in capsys.readouterr().out
    config = EvaluateConfig(checkpoint=str(trained), data_dir=str(images), img_size=48)
    classifier, _ = evaluate.open_classifier(config)
    assert classifier.model.pos_embed.shape[1] == 12 * 12 + 1
    assert Classifier.load(trained).model.pos_embed.shape[1] == 4 * 4 + 1
    assert run(trained, images, "--img-size", "2") == 2
    assert "--img-size 2: Vim cannot take it" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "options"), [("vmamba_tiny_s1l8", {"depths": [1], "embed_dim": 8}),
                                               ("vit_tiny_patch16_224", {"embed_dim": 24, "depth": 1})])  # fmt: skip
def test_train_small_and_score_large(name, options, images, tiny, tmp_path, capsys):
    words = tiny[: tiny.index("--model-kwargs.patch_size")] + tiny[tiny.index("--batch-size") :]
    words += [word for key, value in options.items() for word in (f"--model-kwargs.{key}", str(value))]
    words += ["--model", name, "--img-size", "32", "--epochs", "1", "--output", str(tmp_path), "--experiment", "run"]
    assert train.main(["--data-dir", str(images), *words]) == 0
    assert run(tmp_path / "run", images, "--img-size", "64") == 0
    assert "at 64x64" in capsys.readouterr().out


def test_weights_without_a_run_folder(images, tmp_path, capsys):
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1}
    model = timm.create_model("vim_tiny_patch16_224", num_classes=3, **options)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    words = ["--img-size", "16"]
    words += [word for key, value in options.items() for word in (f"--model-kwargs.{key}", str(value))]
    assert run(tmp_path / "w.pth", images, *words) == 0
    shutil.copytree(images, tmp_path / "two", ignore=lambda folder, names: {"plain"} & set(names))
    assert run(tmp_path / "w.pth", tmp_path / "two", *words) == 2
    error = capsys.readouterr().err
    assert "w.pth: its head has 3 classes, expected 2; give the --num-classes of its training" in error
    assert run(tmp_path / "w.pth", tmp_path / "two", *words, "--num-classes", "3") == 0


def test_refusals(trained, images, own_images, tmp_path, capsys):
    assert run(tmp_path, images) == 2
    assert "there is no such file" in capsys.readouterr().err
    shutil.copytree(own_images / "val" / "down", own_images / "val" / "zebra")
    assert run(trained, own_images) == 2
    assert "the class zebra is none of the 3 classes of the model" in capsys.readouterr().err
    shutil.rmtree(own_images / "val" / "zebra")
    (own_images / "val" / "down" / "000.png").write_text("no")
    assert run(trained, own_images) == 2
    assert "000.png: no image in any known format" in capsys.readouterr().err
    assert run(trained, own_images, "--bad-images", "skip") == 0
    assert "1 image could not be read and does not count" in capsys.readouterr().out
