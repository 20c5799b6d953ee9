"""python -m audio.generate: files, notes, sessions, and one sentence for what cannot be done."""

import json

import pytest
import soundfile
import torch

from audio import Quantizer, SaShiMi, preset
from audio.checkpoint import Checkpoint
from audio.generate import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = SaShiMi(preset("fsdd_small", layers=1, d_model=16, labels=(2, 2)))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    names = (("low", "high"), ("ann", "bob"))
    Checkpoint(model=model, quantizer=Quantizer(), sample_rate=8000, labels=names).save(path)
    return str(path)


def run(checkpoint, *words):
    return main(["--checkpoint", checkpoint, "--seconds", "0.05", "--picture", "false", *map(str, words)])


def samples(path):
    return soundfile.read(path, dtype="float32")[0]


def test_clips_notes_and_pictures(checkpoint, tmp_path):
    out = tmp_path / "clip.wav"
    assert run(checkpoint, "--out", out, "--batch", 2, "--seed", 7, "--label", "high,-", "--picture", "true") == 0
    names = {"clip-0.wav", "clip-0.json", "clip-0.png", "clip-1.wav", "clip-1.json", "clip-1.png"}
    assert {p.name for p in tmp_path.iterdir()} == names
    note = json.loads((tmp_path / "clip-1.json").read_text())
    assert (note["seed"], note["seconds"], note["sample_rate"], note["samples_drawn"]) == (8, 0.05, 8000, 400)
    assert note["checkpoint"]["sha256"] == Checkpoint.load(checkpoint).sha256
    assert note["bits_per_sample"] == pytest.approx(-note["log_likelihood_nats"] / 400 / 0.693147, rel=1e-5)
    assert note["real_time_factor"] == pytest.approx(note["samples_per_second"] / 8000)
    assert (note["draw"], note["complete"]) == ({"temperature": 1.0, "top_k": 0, "top_p": 1.0}, True)
    assert run(checkpoint, "--out", tmp_path / "alone.wav", "--seed", 8, "--label", "high") == 0
    assert (tmp_path / "alone.wav").read_bytes() == (tmp_path / "clip-1.wav").read_bytes()


@pytest.mark.parametrize(("name", "subtype", "bits"), [("a.wav", "16", 2**-15), ("a.wav", "24", 2**-23),
                                                       ("a.wav", "float", 1e-7), ("a.flac", "24", 2**-23)])  # fmt: skip
def test_formats(checkpoint, tmp_path, name, subtype, bits):
    from audio import Generator

    assert run(checkpoint, "--out", tmp_path / name, "--subtype", subtype, "--seed", 3) == 0
    loaded = Checkpoint.load(checkpoint)
    want = loaded.quantizer.decode(Generator.of(loaded).start([3]).advance(400).tokens[0]).numpy()
    assert abs(samples(tmp_path / name) - want).max() <= bits


def test_a_prompt_at_another_rate_comes_first(checkpoint, tmp_path):
    tone = 0.5 * torch.sin(torch.arange(1600) * 0.1)
    soundfile.write(tmp_path / "tone.wav", tone.numpy(), 16_000)
    words = ("--prompt", tmp_path / "tone.wav", "--seed", 1)
    assert run(checkpoint, "--out", tmp_path / "with.wav", *words) == 0
    assert run(checkpoint, "--out", tmp_path / "after.wav", *words, "--include-prompt", "false") == 0
    both, after = samples(tmp_path / "with.wav"), samples(tmp_path / "after.wav")
    assert (len(both), len(after)) == (800 + 400, 400)
    assert (both[800:] == after).all()
    assert abs(both[100:700] - 0.5 * torch.sin(torch.arange(800) * 0.2).numpy()[100:700]).max() < 0.05


def test_a_session_goes_on(checkpoint, tmp_path):
    assert run(checkpoint, "--out", tmp_path / "a.wav", "--seed", 5, "--save-session", tmp_path / "a.session") == 0
    assert run(checkpoint, "--out", tmp_path / "b.wav", "--from-session", tmp_path / "a.session") == 0
    assert run(checkpoint, "--out", tmp_path / "c.wav", "--seed", 5, "--seconds", 0.1) == 0
    parts = [*samples(tmp_path / "a.wav"), *samples(tmp_path / "b.wav")]
    assert parts == samples(tmp_path / "c.wav").tolist()
    assert json.loads((tmp_path / "b.json").read_text())["first_sample"] == 400


REFUSED = {
    "seconds": (["--seconds", "-1"], "--seconds -1"),
    "batch": (["--batch", "0"], "--batch 0"),
    "top-p": (["--top-p", "0"], "top-p"),
    "ending": (["--out", "x.mp3"], "WAV takes"),
    "folder": (["--out", "absent/x.wav"], "no folder absent"),
    "label": (["--label", "middle"], "unknown label 'middle'"),
    "labels": (["--label", "low,ann,x"], "3 labels given"),
    "prompt": (["--prompt", __file__], "cannot be read as audio"),
    "session": (["--from-session", "absent.session"], "no session"),
    "both": (["--from-session", "absent.session", "--seed", "1"], "leave those options out"),
    "seed": (["--seed", "-4"], "--seed -4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_for_what_cannot_be_done(checkpoint, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    words, text = REFUSED[case]
    assert run(checkpoint, *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if "no C compiler was found" not in line]  # a warning of its own, where it is true
    assert len(lines) == 1
    assert text in lines[0]
    assert not list(tmp_path.iterdir())


def test_not_a_checkpoint(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert run(str(tmp_path / "x.safetensors"), "--out", tmp_path / "x.wav") == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_interrupted_it_keeps_what_was_made(checkpoint, tmp_path, monkeypatch, capsys):
    """Ctrl-C: the samples so far, a session, and the command that goes on to the same clip."""
    from audio.generation import Session

    advance, calls = Session.advance, []

    def until_the_third(self, count, draw=None):
        calls.append(count)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(self, count, draw)

    monkeypatch.setattr(Session, "advance", until_the_third)
    assert run(checkpoint, "--out", tmp_path / "x.wav", "--seconds", 1, "--seed", 2) == 130
    assert f"--from-session {tmp_path / 'x.session'}" in capsys.readouterr().err
    note = json.loads((tmp_path / "x.json").read_text())
    assert (note["complete"], note["samples_drawn"]) == (False, calls[0] + calls[1])
    monkeypatch.undo()
    assert run(checkpoint, "--out", tmp_path / "y.wav", "--from-session", tmp_path / "x.session") == 0
    assert run(checkpoint, "--out", tmp_path / "z.wav", "--seconds", 1, "--seed", 2) == 0
    parts = [*samples(tmp_path / "x.wav"), *samples(tmp_path / "y.wav")]
    assert parts == samples(tmp_path / "z.wav")[: len(parts)].tolist()
