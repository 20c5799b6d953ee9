"""DiffWave from the command line: trained, resumed bit for bit, scored beside a linear filter, a clip a seed."""

import csv
import json
import math
import os
import signal

import pytest
import soundfile
import torch

from audio import evaluate, generate, train
from audio.checkpoint import Checkpoint
from audio.chunks import WaveWindows
from audio.config import DiffWaveConfig
from audio.diffusion import NOISE_LEVELS, linear_filter, noise_error
from audio.errors import AudioError
from audio.models.diffwave import DiffWave
from audio.task import NoiseTask
from tests.audio.test_train import make_tones

SMALL = ["--network", "diffwave", "--diffwave.d-model", "4", "--diffwave.layers", "1", "--diffwave.pool", "[4]",
         "--diffwave.d-state", "4", "--diffwave.d-step", "8", "--diffwave.steps", "6", "--accelerator", "cpu",
         "--recordings.chunk-seconds", "0.05", "--sample-seconds", "0.01", "--batch-size", "4", "--epochs", "2",
         "--recordings.condition", "label", "--recordings.hide-labels", "0.5"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusion")
    make_tones(folder / "tones")
    assert train.main(["--data", str(folder / "tones"), *SMALL, "--output", str(folder / "runs")]) == 0
    return folder / "runs" / "tones"


def test_the_run_folder_and_its_scores(trained):
    names = {p.name for p in trained.iterdir()}
    assert {"best.safetensors", "last.ckpt", "config.yaml", "metrics.csv", "samples", "scores.csv"} <= names
    assert (trained / "samples" / "epoch-002" / "clip-1.wav").is_file()
    with (trained / "scores.csv").open() as file:
        table = {row["model"]: float(row["noise_error"]) for row in csv.DictReader(file)}
    assert list(table) == ["diffwave", "diffwave, labels hidden", "linear filter (Wiener)", "nothing found"]
    assert table["nothing found"] == pytest.approx(1, abs=0.05)
    assert table["linear filter (Wiener)"] < 0.9
    assert 0 < table["diffwave"] < 2
    loaded = Checkpoint.load(trained, "diffwave")
    assert (loaded.network, loaded.labels, loaded.sample_rate) == ("diffwave", (("high", "low"),), 8000)


def test_a_cut_run_resumes_to_the_same_weights(trained, monkeypatch, tmp_path):
    step, calls = NoiseTask.training_step, []

    def training_step(self, batch, batch_idx):  # Lightning goes by these names
        calls.append(batch_idx)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(NoiseTask, "training_step", training_step)
    words = ["--data", str(trained.parents[1] / "tones"), *SMALL, "--output", str(tmp_path)]
    assert train.main(words) == 128 + signal.SIGINT
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "tones")]) == 0
    for name in ("last.safetensors", "best.safetensors", "metrics.csv", "scores.csv"):
        assert (tmp_path / "tones" / name).read_bytes() == (trained / name).read_bytes(), name


def test_clips_are_their_seeds(trained, tmp_path, capsys):
    words = ["--checkpoint", str(trained), "--seconds", "0.02", "--steps", "3", "--picture", "false"]
    assert generate.main([*words, "--batch", "2", "--seed", "7", "--label", "low", "--out", f"{tmp_path}/a.wav"]) == 0
    assert generate.main([*words, "--seed", "8", "--label", "low", "--out", f"{tmp_path}/b.wav"]) == 0
    assert generate.main([*words, "--seed", "8", "--label", "-", "--out", f"{tmp_path}/c.wav"]) == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a-1.wav").read_bytes()
    assert (tmp_path / "c.wav").read_bytes() != (tmp_path / "b.wav").read_bytes()
    assert soundfile.info(tmp_path / "b.wav").frames == 160
    note = json.loads((tmp_path / "a-1.json").read_text())
    assert (note["network"], note["seed"], note["steps"], note["complete"]) == ("diffwave", 8, 3, True)
    assert "bits_per_sample" not in note
    assert "x real time" in capsys.readouterr().out


def test_ctrl_c_keeps_whole_clips(trained, tmp_path, monkeypatch, capsys):
    sample, made = DiffWave.sample, []

    def until_the_second(self, *args, **options):
        made.append(args)
        if len(made) == 2:
            raise KeyboardInterrupt
        return sample(self, *args, **options)

    monkeypatch.setattr(DiffWave, "sample", until_the_second)
    words = ["--checkpoint", str(trained), "--seconds", "0.02", "--steps", "2", "--batch", "3", "--seed", "4"]
    assert generate.main([*words, "--picture", "false", "--out", f"{tmp_path}/a.wav"]) == 130
    assert "1 of 3 clips were made; the next seed is 5" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-0.json", "a-0.wav"]
    assert json.loads((tmp_path / "a-0.json").read_text())["complete"] is False


REFUSED = {
    "temperature": (["--temperature", "0.5"], "--temperature is not for diffwave"),
    "prompt": (["--prompt", "x.wav"], "--prompt is not for diffwave"),
    "weights": (["--weights", "int8"], "--weights is not for diffwave"),
    "steps": (["--steps", "7"], "expected 1 to 6"),
    "label": (["--label", "loud"], "unknown label 'loud'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_for_diffwave_is_refused(trained, tmp_path, capsys, case):
    words, text = REFUSED[case]
    assert generate.main(["--checkpoint", str(trained), "--out", f"{tmp_path}/x.wav", *words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_commands_want_sashimi(trained, capsys):
    with pytest.raises(AudioError, match="a checkpoint of diffwave, and this needs one of sashimi"):
        Checkpoint.load(trained)
    data = str(trained.parents[1] / "tones")
    assert train.main(["--data", data, *SMALL, "--recordings.carry", "true", "--output", str(trained / "no")]) == 2
    assert "carries no state" in capsys.readouterr().err
    assert not (trained / "no").exists()


def test_evaluate_takes_diffwave(trained, capsys):
    words = ["--checkpoint", str(trained), "--data", str(trained.parents[1] / "tones"), "--clips", "2"]
    assert evaluate.main([*words, "--seconds", "0.05", "--steps", "2"]) == 0
    assert "generated" in capsys.readouterr().out
    assert evaluate.main([*words, "--temperature", "0.5"]) == 2


def test_the_linear_filter_is_as_good_as_theory_says():
    """On coloured noise, where no other estimate is better: mean over frequencies of a S / (a S + 1 - a)."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(60, 513, generator=generator)
    waves = list(0.3 * (white[:, 1:] + white[:, :-1]))
    windows = WaveWindows(waves, torch.zeros(60, 0, dtype=torch.int64), length=512, batch_size=16)
    kept = (1 - torch.linspace(1e-3, 0.2, 40)).cumprod(0)
    power = 0.09 * 2 * (1 + torch.cos(torch.arange(257) * 2 * math.pi / 512))
    a = kept[torch.linspace(0, 39, NOISE_LEVELS).round().long()][:, None]
    want = (a * power / (a * power + 1 - a)).mean()
    assert noise_error(linear_filter(windows, kept), kept, windows) == pytest.approx(float(want), rel=0.03)


def test_windows_cover_every_sample_once():
    waves = [torch.arange(1.0, n + 1) for n in (5, 12, 3)]
    windows = WaveWindows(waves, torch.tensor([[0], [1], [2]]), length=5, batch_size=2, seed=3)
    rows = [(w, int(label)) for i in range(len(windows)) for w, label in zip(*windows[i], strict=True)]
    assert [len(batch) for batch in windows.batches] == [2, 2, 1]
    for label, wave in enumerate(waves):
        mine = torch.cat([w for w, owner in rows if owner == label])
        assert sorted(mine[mine > 0].tolist()) == wave.tolist()


def test_sizes_follow_the_recordings():
    assert DiffWaveConfig().labels == ()
    with pytest.raises(ValueError, match="DiffWaveConfig"):
        DiffWaveConfig(steps=0)
