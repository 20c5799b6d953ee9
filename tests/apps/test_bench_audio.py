"""`python -m apps.bench audio` on a tiny model: its rows, its floor, its files."""

import json

import pytest
import soundfile
import torch
from ssm_kernels import native_build

from apps.bench import audio as bench
from apps.bench.__main__ import main
from apps.bench.timing import Protocol
from audio import Quantizer, SaShiMi, preset
from audio.checkpoint import Checkpoint
from audio.models.packed import Packed

pytestmark = pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")
TINY = ("fsdd_small", {"layers": 1, "d_model": 16}, "a tiny model")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(bench.CASES, "full", TINY)
    monkeypatch.setattr(bench, "TOKENS", 32)
    monkeypatch.setattr(bench, "EAGER_TOKENS", 2)


def test_rows(tiny):
    rows = {row["row"]: row for row in bench.measure("full", Protocol(budget=0.01, turn=0.001, least=2))}
    several = {f"{name}, 8 streams" for name in bench.FORMATS}
    assert set(rows) == {"eager", *bench.FORMATS, *several, *(f"floor {name}" for name in bench.FORMATS)}
    for name, row in rows.items():
        assert row["seconds_per_sample"] == pytest.approx(1 / row["samples_per_second"])
        assert row["times_eager"] == pytest.approx(rows["eager"]["seconds_per_sample"] / row["seconds_per_sample"])
        assert (row["times_floor"] is not None) == (name in bench.FORMATS)
    sizes = [rows[name]["bytes_per_sample"] for name in bench.FORMATS]
    assert sizes == sorted(sizes, reverse=True)


def test_the_floor_reads_what_a_step_reads():
    """Sixteen tokens read the outer tier sixteen times, the middle one four times, the centre once."""
    network = Packed(SaShiMi(preset(TINY[0], **TINY[1]))).network
    network.weights.view(torch.float32).fill_(1)
    total = bench._replay(network)  # adds up the floats it reads
    read = sum(size // 4 * (16 // period) for _, size, period in network.regions())
    before = bench.TOKENS
    try:
        bench.TOKENS = 16
        assert total() == pytest.approx(read)
    finally:
        bench.TOKENS = before


def test_json_and_losses(tiny, tmp_path, capsys):
    torch.manual_seed(0)
    model = SaShiMi(preset(TINY[0], **TINY[1]))
    Checkpoint(model=model, quantizer=Quantizer(), sample_rate=8000).save(tmp_path / "model.safetensors")
    soundfile.write(tmp_path / "tone.wav", torch.sin(torch.arange(200) * 0.1).numpy(), 8000)
    words = ["audio", "--case", "full", "--seconds", "0.01", "--checkpoint", str(tmp_path / "model.safetensors")]
    words += ["--sound", str(tmp_path / "tone.wav")]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    bits = result["bits_per_sample"]
    assert abs(bits["float32"] - bits["eager"]) < 1e-4
    assert 0 < abs(bits["int8"] - bits["eager"]) < 0.05
    assert main([*words, "--json", str(tmp_path / "rows.json")]) == 0
    assert "x 16 kHz" in capsys.readouterr().out
    assert {row["model"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]} == {"full"}


def test_a_recording_that_is_none(tiny, tmp_path, capsys):
    model = SaShiMi(preset(TINY[0], **TINY[1]))
    Checkpoint(model=model, quantizer=Quantizer(), sample_rate=8000).save(tmp_path / "model.safetensors")
    words = ["audio", "--case", "full", "--seconds", "0.01", "--checkpoint", str(tmp_path / "model.safetensors")]
    assert main([*words, "--sound", "absent.wav"]) == 2
    assert "absent.wav: there is no such file" in capsys.readouterr().err
