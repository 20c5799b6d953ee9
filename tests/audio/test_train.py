"""The trainer, as a person types it: run folder, scores, refusals, exact resume with and without carried state."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from audio import compress, decompress, evaluate, train
from audio.checkpoint import Checkpoint
from audio.chunks import Pieces, Streams
from audio.data import load_collection
from audio.errors import AudioError
from audio.experiment import Experiment
from audio.files import write_audio
from audio.likelihood import bits_per_sample, continue_rows, whole_recordings
from audio.models.sashimi import SaShiMi
from audio.quantize import Quantizer
from audio.recipes import RECIPES
from audio.smooth_start import level_waves, start_smooth
from audio.task import SampleTask
from audio.train_config import OptimConfig, TrainConfig
from ssmcore.engine import RunSettings, cli, fit, make_loader
from ssmcore.engine.errors import Interrupted

ROOT = Path(__file__).parents[2]
SMALL = ["--model.d-model", "8", "--model.layers", "1", "--accelerator", "cpu", "--model.pool", "[4]",
         "--model.mixers", "{s4d: {d_state: 4}, mlp: {expand: 1.0}}", "--sample-seconds", "0.01"]  # fmt: skip


def make_tones(folder, count=8, frames=900):
    """Two classes of noisy tones in two folders."""
    for i in range(count):
        t = torch.arange(frames + 37 * i)
        hiss = torch.randn(len(t), generator=torch.Generator().manual_seed(i))
        wave = 0.5 * torch.sin(t * (0.1 if i % 2 else 0.3)) + 0.03 * hiss
        path = folder / ("low" if i % 2 else "high") / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, wave, 8000)
    return folder


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return make_tones(tmp_path_factory.mktemp("tones") / "tones")


def scores(run_dir):
    with (run_dir / "scores.csv").open() as file:
        return {row["model"]: float(row["bits_per_sample"]) for row in csv.DictReader(file)}


def tiny_model(labels=(), seed=0):
    torch.manual_seed(seed)
    config = TrainConfig().model
    mixers = {"s4d": {"d_state": 4}, "mlp": {"expand": 1.0}}
    return SaShiMi(replace(config, d_model=8, layers=1, pool=(4,), mixers=mixers, labels=labels))


def test_command_end_to_end(tones, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(tones), "--epochs", "2", "--batch-size", "2", "--recordings.condition", "label", *SMALL]
    assert train.main([*words, "--recordings.hide-labels", "0.5"]) == 0
    printed = capsys.readouterr().out
    run_dir = tmp_path / "runs" / "tones"
    wanted = {
        "best.safetensors",
        "last.safetensors",
        "last.ckpt",
        "config.yaml",
        "metrics.csv",
        "samples",
        "scores.csv",
    }
    assert wanted <= {p.name for p in run_dir.iterdir()}
    assert sorted(p.name for p in (run_dir / "samples" / "epoch-002").iterdir()) == [
        "clip-0.wav", "clip-1.wav", "clips.png"
    ]  # fmt: skip
    table = scores(run_dir)
    assert list(table)[:4] == ["sashimi", "sashimi, labels hidden", "uniform", "unigram"]
    assert table["uniform"] == 8
    assert 2 < table["sashimi"] < 8
    assert "told 2 labels" in printed
    loaded = Checkpoint.load(run_dir)
    assert loaded.labels == (("high", "low"),)
    assert loaded.sample_rate == 8000
    assert train.main(["--resume", str(run_dir)]) == 0  # finished: scores again, trains nothing
    assert scores(run_dir) == table


def test_scores_are_the_likelihood_of_every_sample(tones):
    """The printed number, by hand: sample after sample, from the step."""
    model, quantizer = tiny_model().eval(), Quantizer()
    tokens = [quantizer.encode(r.wave(None, True)[0])[:40] for r in load_collection(tones).test]
    labels = torch.zeros(len(tokens), 0, dtype=torch.int64)
    options = {"batch_size": 2, "silence": quantizer.zero}
    whole = bits_per_sample(model, whole_recordings(tokens, labels, length=1000, **options))
    carried = bits_per_sample(model, whole_recordings(tokens, labels, length=8, **options))
    by_hand = []
    with torch.no_grad():
        for t in tokens:
            state, level = model.init_state(1), torch.tensor([quantizer.zero])
            for now in t:
                logits, state = model.step(level, state)
                by_hand.append(-float(logits[0].double().log_softmax(-1)[now]) / 0.6931471805599453)
                level = now[None]
    assert whole == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert carried == pytest.approx(whole, rel=1e-5)


def test_carried_rows_start_afresh_where_a_recording_starts():
    model, tokens = tiny_model((2,)).eval(), [torch.randint(0, 256, (n,)) for n in (32, 16, 24)]
    streams = Streams(tokens, torch.tensor([[0], [1], [1]]), length=8, batch_size=2, silence=128)
    state, seen = None, {}
    for index in range(len(streams)):
        batch = streams[index]
        with torch.no_grad():
            logits, state = continue_rows(model, batch, state)
        for row in range(2):
            key = (row, sum(int(streams[i].fresh[row]) for i in range(index + 1)))
            seen.setdefault(key, []).append((logits[row], batch.inputs[row], batch.label[row]))
    for parts in seen.values():
        inputs = torch.cat([p[1] for p in parts])[None]
        with torch.no_grad():
            alone, _ = model(inputs, label=parts[0][2][None])
        assert torch.allclose(torch.cat([p[0] for p in parts]), alone[0], atol=1e-5)


def test_smooth_start_gives_neighbours_like_chances():
    model = tiny_model().eval()
    rough = model(torch.full((1, 4), 128))[0].softmax(-1)
    start_smooth(model)
    smooth = model(torch.full((1, 4), 128))[0].softmax(-1)
    assert smooth.diff(dim=-1).abs().mean() < 0.1 * rough.diff(dim=-1).abs().mean()
    waves = level_waves(256, 9)
    assert waves.shape == (256, 9)
    assert torch.allclose(waves[:, :4], -waves.flip(0)[:, :4], atol=1e-6)  # sines are odd
    assert torch.allclose(waves[:, 4:], waves.flip(0)[:, 4:], atol=1e-6)  # cosines are even


@pytest.mark.parametrize("carry", [False, True])
def test_a_cut_run_resumes_to_the_same_weights(carry, tmp_path):
    """Mid-epoch, with the carried state: bit for bit."""
    tokens = [torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(n)) for n in (100, 60, 40, 90)]
    labels = torch.tensor([[0], [1], [0], [1]])
    if carry:
        data = Streams(tokens, labels, length=16, batch_size=2, silence=128)
    else:
        data = Pieces(tokens, labels, length=16, batch_size=2, silence=128, multiple=4)
    settings = RunSettings(epochs=2, seed=1, monitor="val_bits", save_every=1, accelerator="cpu")

    def run(folder, stop_at=None):
        folder.mkdir(exist_ok=True)
        task = SampleTask(tiny_model((2,)), OptimConfig(), 2 * len(data), hide_labels=0.5)
        if stop_at is not None:
            step, calls = task.training_step, []

            def training_step(batch, batch_idx):  # Lightning goes by these names
                calls.append(batch_idx)
                if len(calls) == stop_at:
                    os.kill(os.getpid(), signal.SIGINT)
                return step(batch, batch_idx)

            task.training_step = training_step
        train_loader = make_loader(data, 1, seed=1, shuffle=not carry, collate_fn=lambda items: items[0])
        validation = make_loader(data, 1, seed=0, shuffle=False, collate_fn=lambda items: items[0])
        fit(task, train_loader, validation, settings, folder)

    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop_at=len(data) // 2 + 1)
    run(tmp_path / "cut")
    for name in ("last.safetensors", "best.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


REFUSED = {
    "no data": ([], "give a folder of recordings with --data"),
    "nowhere": (["--data", "nowhere"], "nowhere: there is no such file or folder"),
    "no sound": (["--data", "text.wav"], "text.wav: cannot be read as audio"),
    "no labels": (["--data", "one.wav", "--recordings.condition", "label"], "have no label"),
    "no speaker": (["--data", "one.wav", "--recordings.leave-out", "eve"], "there is no such speaker"),
    "too short": (["--data", "short.wav"], "part holds no samples"),
    "chunk": (["--data", "one.wav", "--recordings.chunk-seconds", "0"], "must be positive"),
    "rate": (["--data", "one.wav", "--recordings.sample-rate", "5"], "the wanted rate: a rate of 5 Hz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence_and_leave_nothing_behind(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_audio("one.wav", torch.rand(1, 500), 8000)
    write_audio("short.wav", torch.rand(1, 3), 8000)
    Path("text.wav").write_text("hello")
    words, message = REFUSED[case]
    assert train.main([*words, *SMALL]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_full_disk_is_a_sentence(tones, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "runs")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("audio.experiment.make_run_dir", full)
    assert train.main(["--data", str(tones), *SMALL]) == 2
    assert capsys.readouterr().err == "python -m audio.train: runs: No space left on device\n"


def test_checkpoints_of_other_models_are_refused(tmp_path):
    from ssmcore.engine import save_weights

    model = Checkpoint(model=tiny_model(), quantizer=Quantizer(), sample_rate=8000)
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"kind": "vision"})
    save_weights(tmp_path / "torn.safetensors", {"x": torch.zeros(1)}, model.note)
    for name, sentence in (
        ("other", "a checkpoint of another model"),
        ("torn", "do not fit"),
        ("none", "there is no file"),
    ):
        with pytest.raises(AudioError, match=sentence) as error:
            Checkpoint.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)
    model.save(tmp_path / "good.safetensors")
    again = Checkpoint.load(tmp_path / "good.safetensors")
    assert again.note == model.note
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), model.model.parameters(), strict=True))
    with pytest.raises(AudioError, match="1 labels given, the model has none"):
        again.label("a")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_can_be_written_and_read_and_build(name, tmp_path):
    config = RECIPES[name]()
    (tmp_path / "config.yaml").write_text(cli.dump(config))
    again = cli.parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")], prog="p", recipes=RECIPES)
    assert cli.dump(again) == cli.dump(config)
    assert RECIPES[name].__doc__
    assert asdict(again)["optim"]["lr"] == config.optim.lr


def test_the_optimiser_is_the_one_that_was_asked_for():
    config = replace(RECIPES["sc09_mamba"]().optim, schedule="constant")
    optimizer = SampleTask(tiny_model(), config, 10).configure_optimizers()
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    with pytest.raises(ValueError, match="betas"):
        OptimConfig(betas=(0.9, 1.5))


@pytest.mark.parametrize("module", [train, compress, decompress, evaluate])
def test_help_needs_no_torch(module, tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    code = (
        f"import sys; from {module.__name__} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout or "--data" in done.stdout


def test_labels_of_unknown_speakers_are_hidden(tmp_path):
    for digit in (0, 1):
        for speaker in ("ann", "bob"):
            for index in (0, 5, 10, 11):
                write_audio(tmp_path / f"{digit}_{speaker}_{index}.wav", torch.rand(1, 50), 8000)
    config = TrainConfig(data=str(tmp_path), output=str(tmp_path / "runs"))
    config = replace(config, recordings=replace(config.recordings, condition="both", leave_out="bob"))
    experiment = Experiment(config, load_collection(tmp_path, leave_out="bob"))
    assert experiment.sizes().labels == (2, 1)
    assert set(experiment.labels["test"][:, 1].tolist()) == {-1}
    assert set(experiment.labels["test"][:, 0].tolist()) == {0, 1}


@pytest.mark.slow
def test_digits_are_predicted_better_than_by_any_simple_model(shared_data, tmp_path):
    path = shared_data / "audio" / "fsdd.tar"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    words = ["--recipe", "fsdd_quick", "--data", str(path), "--samples", "0", "--accelerator", "cpu"]
    assert train.main([*words, "--output", str(tmp_path)]) == 0
    table = scores(tmp_path / "fsdd")
    best = min(bits for name, bits in table.items() if "sashimi" not in name)
    assert table["sashimi"] < best - 0.3
    assert table["sashimi, labels hidden"] < best - 0.25
