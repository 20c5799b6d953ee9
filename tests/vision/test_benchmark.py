"""The benchmark command: rows that were measured, and rows that say why they could not be."""

import csv
from dataclasses import asdict

import pytest

from vision import benchmark


def in_this_process(case, config, device):
    return benchmark.Row(**asdict(case), **benchmark.measure(case, config, device))


def words(models, size, passes, path):
    return [
        *("--models", models, "--img-sizes", str(size), "--batch-sizes", "2"),
        *("--seconds", "0.1", "--precisions", "fp32,tf32", "--passes", passes, "--device", "cpu", "--threads", "1"),
        *("--output", str(path)),
    ]


def test_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "in_own_process", in_this_process)
    assert benchmark.main(words("resnet10t,vit_tiny_patch16_224", 32, "infer,train", tmp_path / "rows.csv")) == 0
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["which_pass"], row["precision"]) for row in rows] == [
        (model, which, "fp32")  # no TF32 on a CPU
        for model in ("resnet10t", "vit_tiny_patch16_224")
        for which in ("infer", "train")
    ]
    for row in rows:
        assert float(row["images_per_second"]) == pytest.approx(2e3 / float(row["milliseconds"]))
    assert float(rows[1]["milliseconds"]) > float(rows[0]["milliseconds"])
    assert "median of synchronised calls" in capsys.readouterr().out


def test_a_case_that_cannot_run_costs_its_row_alone(tmp_path):
    """Each in a process of its own; 8 pixels are less than a patch of the ViT."""
    assert benchmark.main(words("resnet10t,vit_tiny_patch16_224", 8, "train", tmp_path / "rows.csv")) == 1
    with (tmp_path / "rows.csv").open() as file:
        whole, row = csv.DictReader(file)
    # ResNet-10 has 5 M parameters: 20 MiB, gradients, moments. In this process memory that is free already would do.
    assert 10 < float(whole["memory_mib"]) < 2000
    assert row["images_per_second"] == ""
    assert row["reason"]


def test_refusals(capsys):
    assert benchmark.main(["--models", "vim_tiny_patch16_223"]) == 2
    assert "did you mean vim_tiny_patch16_224" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--precisions", "fp8"])
