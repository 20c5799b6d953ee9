"""The command, as a person types it: run folder, options, refusals, bad images, interruption and resume."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import torch
import yaml

import vision
from ssmcore.engine import cli, load_weights
from vision import benchmark, evaluate, predict, train
from vision.config import BenchmarkConfig, EvaluateConfig, PredictConfig, TrainConfig
from vision.recipes import RECIPES

NOISY = [
    "--aa", "rand-m9-mstd0.5-inc1", "--reprob", "0.5", "--mixup", "0.8", "--cutmix", "1", "--model-ema",
    "--drop-path", "0.2", "--grad-accum-steps", "2", "--aug-repeats", "2",
]  # fmt: skip


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def run(images, tiny, tmp_path, *words):
    return train.main(["--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run", *tiny, *words])


def test_run_folder(trained):
    names = {"best.safetensors", "last.safetensors", "last.ckpt", "config.yaml", "metrics.csv", "finished.json"}
    assert {path.name for path in trained.iterdir()} == names | {"tensorboard"}
    _, note = load_weights(trained / "best.safetensors")
    assert note["model"] == "vim_tiny_patch16_224"
    assert note["classes"] == ["across", "down", "plain"]
    assert note["preparation"]["img_size"] == [16, 16]
    assert yaml.safe_load((trained / "config.yaml").read_text())["model_kwargs"]["patch_size"] == 4
    assert [set(row) >= {"val_top1", "val_top5", "val_loss", "train_loss"} for row in rows(trained)] == [True, True]


def test_it_learns(images, tiny, tmp_path, capsys):
    words = ["--epochs", "12", "--no-aug", "--lr", "0.01", "--smoothing", "0"]
    assert run(images, [*tiny, *words], tmp_path) == 0
    assert max(float(row["val_top1"]) for row in rows(tmp_path / "run")) > 90
    assert "24 images to train, 12 to score, 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "config"),
    [(train, TrainConfig), (evaluate, EvaluateConfig), (predict, PredictConfig), (benchmark, BenchmarkConfig)],
)
def test_help_explains_every_option(module, config, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    docs = cli.field_docs(config)
    assert set(docs) >= {field.name for field in fields(config)}
    for name, doc in docs.items():
        if name != "images":  # words without a flag
            assert "--" + name.replace("_", "-") in text
            assert doc[:30] in text


def test_help_and_recipes_need_no_torch(command_env, tmp_path):
    code = (
        "import sys, vision.train, vision.evaluate, vision.predict, vision.benchmark, vision.recipes\n"
        "assert not {'torch', 'timm', 'lightning', 'PIL'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=command_env, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_models_and_options_that_exist(name):
    import vision.models  # noqa: F401
    from vision.data import Preparation
    from vision.task import ClassifyTask

    config = RECIPES[name]()
    if not timm.is_model(config.model):
        pytest.skip(f"{config.model} is not registered")
    prepared = Preparation(
        img_size=(32, 32), in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic"
    )
    prepared.augmentation(config, config.interpolation)
    task = ClassifyTask(torch.nn.Linear(2, 2), config, 10, updates_per_epoch=10, batch=1024)
    assert task.configure_optimizers()["lr_scheduler"]["scheduler"] is not None
    assert "%" in RECIPES[name].__doc__


def test_flags_are_timms():
    words = "--data-dir d --model m --opt lamb --lr 1 --aa original --mixup 0.8 --amp --channels-last --layer-decay 0.7"
    config = cli.parse(TrainConfig, [*words.split(), "--model-ema", "--seed", "3"], prog="p", recipes=RECIPES)
    assert (config.opt, config.aa, config.layer_decay, config.seed) == ("lamb", "original", 0.7, 3)
    assert config.amp
    assert config.channels_last
    assert config.model_ema
    config = cli.parse(TrainConfig, ["--recipe", "vmamba_tiny", "--model-ema", "false"], prog="p", recipes=RECIPES)
    assert (config.model, config.model_ema, config.drop_path) == ("vmamba_tiny_s1l8", False, 0.2)


def readme_commands():
    text = (Path(train.__file__).parent / "README.md").read_text()
    return re.findall(r"^python -m vision\.(\w+) +(.*?)(?: {2,}#.*)?$", text, flags=re.M)


@pytest.mark.parametrize(("module", "words"), readme_commands())
def test_the_readmes_commands_are_understood(module, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = words.split()
    if "--resume" in words:
        folder = Path(words[words.index("--resume") + 1])
        folder.mkdir(parents=True)
        (folder / cli.CONFIG_FILE).write_text(cli.dump(TrainConfig()))
    if module == "train":
        cli.parse(TrainConfig, words, prog="p", recipes=RECIPES)
    elif module == "predict":
        cli.parse(PredictConfig, words, prog="p", positional="images")
    elif module == "evaluate":
        cli.parse(EvaluateConfig, words, prog="p")
    else:
        monkeypatch.setattr(benchmark, "benchmark", lambda config: [])
        assert benchmark.main(words) == 0


def test_the_readme_names_what_exists():
    ours = vision.list_models()  # registers them with timm, also where this test runs alone
    text = (Path(train.__file__).parent / "README.md").read_text()
    for name in re.findall(r"`(\w+)`", text[text.index("## Models") : text.index("`vision.list_models()`")]):
        assert name in RECIPES or name in ours or timm.is_model(name) or name.startswith("_"), name


REFUSED = {
    "no data": ([], "give a folder or an archive of images with --data-dir"),
    "model": (["--model", "vim_tiny_patch16_223"], "there is no such model; did you mean vim_tiny_patch16_224"),
    "model option": (["--model-kwargs.depht", "3"], "unexpected keyword argument 'depht'"),
    "mixer": (["--model-kwargs.mixer", "mambo"], "unknown mixer 'mambo'; did you mean"),
    "checkpoint": (["--checkpoint", "none.pth"], "none.pth: there is no such file"),
    "classes": (["--num-classes", "2"], "--num-classes 2: the data have 3 classes"),
    "size": (["--img-size", "3"], "cannot take images of 3x3 pixels"),
    "freeze": (["--freeze", '["blok*"]'], "--freeze blok*: no parameter has such a name"),
    "ema and fsdp": (["--model-ema", "--strategy", "fsdp"], "does not go with --strategy fsdp"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence_and_leave_nothing_behind(case, images, tiny, tmp_path, capsys):
    words, message = REFUSED[case]
    data = [] if case == "no data" else ["--data-dir", str(images)]
    assert train.main([*data, "--output", str(tmp_path / "runs"), *tiny, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_bad_images_stop_or_are_left_out_and_counted(own_images, tiny, tmp_path, capsys):
    (own_images / "train" / "down" / "003.png").write_text("no")
    (own_images / "val" / "plain" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run(own_images, tiny, tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "003.png: no image in any known format; remove it, or leave such images out with --bad-images skip" in error
    assert error.count("\n") == 1
    assert run(own_images, tiny, tmp_path / "b", "--bad-images", "skip") == 0
    told = capsys.readouterr()
    assert told.err.count("left out: ") == 2
    assert "2 images could not be read and were left out" in told.out


def test_a_folder_without_parts_is_said_to_score_what_it_trains_on(images, tiny, tmp_path, capsys):
    assert run(images / "train", [*tiny, "--epochs", "1"], tmp_path) == 0
    assert "has no parts: the score is that of the training images" in capsys.readouterr().err


def test_a_new_head_for_other_classes(trained, images, tiny, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "two", ignore=lambda folder, names: {"plain"} & set(names))
    weights = ["--checkpoint", str(trained), "--epochs", "1", "--freeze", '["blocks.*"]']
    assert run(tmp_path / "two", tiny, tmp_path, *weights) == 0
    told = capsys.readouterr()
    assert "a fresh head for 2 classes in place of one for 3" in told.out
    assert "parameters stay as they are" in told.err
    old, new = (load_weights(folder / "last.safetensors")[0] for folder in (trained, tmp_path / "run"))
    best = load_weights(trained / "best.safetensors")[0]
    assert new["head.weight"].shape[0] == 2
    assert torch.equal(new["blocks.0.mixer.in_proj.weight"], best["blocks.0.mixer.in_proj.weight"])
    assert not torch.equal(new["patch_embed.proj.weight"], best["patch_embed.proj.weight"])


def test_weights_of_timm_and_weights_that_do_not_fit(images, tiny, tmp_path, capsys):
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    words = [
        "--model",
        "vit_tiny_patch16_224",
        "--model-kwargs.num_heads",
        "2",
        "--checkpoint",
        str(tmp_path / "vit.pth"),
    ]
    assert run(images, tiny, tmp_path, *words, "--epochs", "1") == 0
    assert "a fresh head for 3 classes in place of one for 1000" in capsys.readouterr().out
    assert run(images, tiny, tmp_path, "--checkpoint", str(tmp_path / "vit.pth")) == 2
    assert "the weights do not fit Vim: " in capsys.readouterr().err
    (tmp_path / "no.pth").write_text("no")
    assert run(images, tiny, tmp_path, "--checkpoint", str(tmp_path / "no.pth")) == 2
    assert "no.pth: no weights can be read from it" in capsys.readouterr().err


def test_other_size_for_scores_and_other_ways_to_compute(images, tiny, tmp_path, capsys):
    words = ["--val-img-size", "24", "--amp", "--channels-last", "--grad-checkpointing", "--epochs", "1"]
    assert run(images, tiny, tmp_path, *words, "--opt", "lion", "--sched", "poly", "--clip-grad", "1") == 0
    assert run(images, tiny, tmp_path, "--val-img-size", "2") == 2
    assert "Vim cannot take images of 2x2 pixels" in capsys.readouterr().err


def test_nan_stops_the_run_with_a_name(images, tiny, tmp_path, capsys):
    assert run(images, tiny, tmp_path, "--lr", "1e30", "--opt", "sgd", "--epochs", "3") == 1
    assert "holds NaN or infinity" in capsys.readouterr().err


def test_interrupted_command_resumes_to_the_same_weights(images, tiny, tmp_path, command_env, one_thread):
    """With everything random on: augmentation, repeats, mixing, averaging, stochastic depth, accumulation."""
    words = [*tiny, *NOISY, "--batch-size", "2", "--epochs", "3", "--data-dir", str(images)]
    assert train.main([*words, "--output", str(tmp_path / "whole")]) == 0
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "vision.train", *words, "--output", str(tmp_path / "cut")],
        env=command_env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            time.sleep(0.1)
            os.kill(process.pid, signal.SIGINT)
            break
    _, error = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGINT, error
    cut, whole = (tmp_path / name / "stripes-vim_tiny_patch16_224" for name in ("cut", "whole"))
    assert f"go on with: python -m vision.train --resume {cut}" in error
    assert train.main(["--resume", str(cut), "--workers", "1"]) == 2
    assert train.main(["--resume", str(cut)]) == 0
    for name in ("best.safetensors", "last.safetensors", "metrics.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_train_as_one(images, tiny, tmp_path, command_env):
    """DDP over two processes, four images each, against one process with eight."""
    words = [*tiny, "--data-dir", str(images), "--no-aug", "--epochs", "1", "--steps-per-epoch", "3", "--opt", "sgd"]
    words += ["--output", str(tmp_path), "--sched", "constant"]
    for name, more in {"one": [], "two": ["--devices", "2", "--strategy", "ddp", "--batch-size", "4"]}.items():
        command = [sys.executable, "-m", "vision.train", *words, "--experiment", name, *more]
        done = subprocess.run(command, env=command_env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("best top-1") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    one, two = (load_weights(tmp_path / name / "last.safetensors")[0] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_training_is_training(images, tiny, tmp_path, one_thread):
    words = ["--no-aug", "--epochs", "1", "--opt", "sgd", "--model-ema", "--model-ema-decay", "0.5"]
    assert run(images, tiny, tmp_path / "plain", *words) == 0
    assert run(images, tiny, tmp_path / "compiled", *words, "--torchcompile") == 0
    plain, compiled = (load_weights(tmp_path / name / "run" / "best.safetensors")[0] for name in ("plain", "compiled"))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_cifar10_in_a_minute(shared_data, tmp_path):
    """A small VMamba on a fifth of an epoch is far above chance (10 %)."""
    words = "--model vmamba_tiny_s1l8 --model-kwargs.embed_dim 32 --model-kwargs.depths [1,1] --img-size 32 --workers 0"
    words += " --epochs 1 --steps-per-epoch 160 --batch-size 64 --lr 2e-3 --warmup-epochs 0.1 --accelerator cpu"
    words += " --scale [0.6,1] --color-jitter 0 --crop-pct 1 --experiment run"
    data = shared_data / "vision" / "cifar10_jpeg.tar.gz"
    assert train.main([*words.split(), "--data-dir", str(data), "--output", str(tmp_path)]) == 0
    assert float(rows(tmp_path / "run")[-1]["val_top1"]) > 30
