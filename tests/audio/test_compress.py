"""Lossless compression: the coder, the bits it spends, every sample back, files that do not belong together."""

import math
import random

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from audio import compress as compress_command
from audio import decompress as decompress_command
from audio.checkpoint import Checkpoint
from audio.codec import compress, decompress
from audio.config import SaShiMiConfig
from audio.errors import AudioError
from audio.files import read_pcm, write_audio, write_pcm
from audio.generation import Generator
from audio.models.sashimi import SaShiMi
from audio.quantize import Quantizer
from audio.range_coder import TOTAL_BITS, RangeDecoder, RangeEncoder

RATE = 8000


def tiny(seed=0, kind="mu-law"):
    torch.manual_seed(seed)
    mixers = {"s4d": {"d_state": 4}, "mlp": {"expand": 1.0}}
    model = SaShiMi(SaShiMiConfig(d_model=8, layers=1, pool=(4,), mixers=mixers))
    return Checkpoint(model=model, quantizer=Quantizer(kind), sample_rate=RATE)


@pytest.fixture(scope="module")
def checkpoint():
    return tiny()


@given(st.integers(0, 2**32))
def test_coder_returns_its_symbols_in_no_more_bits_than_they_weigh(seed):
    rng, encoder, symbols, bits = random.Random(seed), RangeEncoder(), [], 0.0
    for _ in range(rng.randrange(200)):
        size = rng.choice([1, 3, 1 << 12, (1 << TOTAL_BITS) - 1, 1 << TOTAL_BITS])
        start = rng.randrange((1 << TOTAL_BITS) - size + 1)
        encoder.put(start, size)
        symbols.append((start, size))
        bits += TOTAL_BITS - math.log2(size)
    data = encoder.finish()
    assert 8 * len(data) <= bits + 9
    decoder = RangeDecoder(data)
    for start, size in symbols:
        assert start <= decoder.point() < start + size
        decoder.take(start, size)


def test_a_carry_runs_back_through_full_bytes():
    encoder = RangeEncoder()
    top = 1 << TOTAL_BITS
    symbols = [(top - 1, 1)] * 20 + [(top // 2, top // 2)] * 40
    for start, size in symbols:
        encoder.put(start, size)
    decoder = RangeDecoder(encoder.finish())
    for start, size in symbols:
        assert start <= decoder.point() < start + size
        decoder.take(start, size)


def pcm_of(bits, channels, frames, seed=0, spread=0.1):
    wave = np.random.default_rng(seed).normal(0, spread, (channels, frames)).clip(-1, 0.999)
    return ((wave * 2**31).astype(np.int64) >> (32 - bits) << (32 - bits)).astype(np.int32)


EXTREMES = {
    "silence": np.zeros((1, 40), np.int32),
    "one sample": np.array([[5 << 16]], np.int32),
    "rails": np.array([[-(2**31), 2**31 - 2**16, 0, -(2**31)] * 5], np.int64).astype(np.int32),
    "lowest": np.full((1, 7), -(2**31), np.int64).astype(np.int32),
}


@pytest.mark.parametrize("kind", ["mu-law", "linear"])
@pytest.mark.parametrize("case", [*EXTREMES, "16", "24", "stereo", "loud"])
def test_every_sample_comes_back(case, kind):
    made = {
        "16": lambda: pcm_of(16, 1, 300),
        "24": lambda: pcm_of(24, 1, 300),
        "stereo": lambda: pcm_of(16, 2, 170),
        "loud": lambda: pcm_of(16, 1, 300, spread=2.0),
    }
    pcm = EXTREMES[case] if case in EXTREMES else made[case]()
    model = tiny(kind=kind)
    squeezed = compress(model, pcm, 44100, segment_seconds=0.01)
    back, rate = decompress(model, squeezed.data)
    assert rate == 44100
    assert back.dtype == np.int32
    assert np.array_equal(back, pcm)


def test_pytorch_and_native_steps_both_round_trip(checkpoint, monkeypatch):
    pcm = pcm_of(16, 1, 60)
    plain = Generator.of
    monkeypatch.setattr(Generator, "of", classmethod(lambda cls, c, **o: plain(c, backend="torch")))
    assert np.array_equal(decompress(checkpoint, compress(checkpoint, pcm, RATE).data)[0], pcm)


def test_bits_equal_the_likelihood(checkpoint):
    """The file is as long as the model's negative log-likelihood, from its parallel form, says."""
    pcm = pcm_of(16, 1, 2000)
    squeezed = compress(checkpoint, pcm, RATE)
    high = torch.from_numpy(pcm >> 16).double()
    levels = checkpoint.quantizer.encode(high / max(abs(int(high.min())), int(high.max())))
    inputs = torch.cat([torch.full((1, 1), checkpoint.quantizer.zero), levels[:, :-1]], 1)
    with torch.no_grad():
        logits, _ = checkpoint.model(inputs)
    bits = torch.nn.functional.cross_entropy(logits[0].double(), levels[0], reduction="sum").item() / math.log(2)
    assert squeezed.level_bits == pytest.approx(bits, rel=0.01)
    whole = squeezed.level_bits + squeezed.place_bits
    assert 8 * len(squeezed.data) == pytest.approx(whole, rel=0.01, abs=8 * 40)


def test_a_good_model_makes_a_small_file():
    """What the model knows by heart costs next to nothing."""
    model = tiny()
    with torch.no_grad():
        model.model.head.weight.zero_()
        model.model.head.bias.fill_(-20.0)
        model.model.head.bias[model.quantizer.zero] = 0.0
    assert len(compress(model, np.zeros((1, 4000), np.int32), RATE).data) < 60


def test_foreign_damaged_and_mismatched_files_are_refused(checkpoint):
    pcm = pcm_of(16, 1, 200)
    data = compress(checkpoint, pcm, RATE).data
    with pytest.raises(AudioError, match="with another checkpoint"):
        decompress(tiny(1), data)
    with pytest.raises(AudioError, match=r"not a file that audio\.compress wrote"):
        decompress(checkpoint, b"RIFF" + data)
    with pytest.raises(AudioError, match=r"not a file that audio\.compress wrote"):
        decompress(checkpoint, b"")
    for place in (len(data) // 2, len(data) - 10):
        broken = bytearray(data)
        broken[place] ^= 0x55
        with pytest.raises(AudioError, match="damaged"):
            decompress(checkpoint, bytes(broken))
    with pytest.raises(AudioError, match="at least one sample"):
        compress(checkpoint, np.zeros((1, 0), np.int32), RATE)
    with pytest.raises(AudioError, match="more than 24 bits"):
        compress(checkpoint, np.full((1, 4), 3, np.int32), RATE)


def test_commands(checkpoint, tmp_path, capsys):
    checkpoint.save(tmp_path / "m.safetensors")
    pcm = pcm_of(16, 2, 500)
    write_pcm(tmp_path / "a.wav", pcm, 22050)
    model = ["--checkpoint", str(tmp_path / "m.safetensors")]
    assert compress_command.main([*model, "--input", str(tmp_path / "a.wav"), "--segment-seconds", "0.02"]) == 0
    assert "bits a sample" in capsys.readouterr().out
    words = [*model, "--input", str(tmp_path / "a.ssa"), "--output", str(tmp_path / "b.wav")]
    assert decompress_command.main(words) == 0
    back, rate = read_pcm(tmp_path / "b.wav")
    assert rate == 22050
    assert np.array_equal(back, pcm)
    assert soundfile.info(tmp_path / "b.wav").subtype == "PCM_16"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give a checkpoint with --checkpoint"),
        (["--checkpoint", "m.safetensors", "--input", "none.wav"], "none.wav: there is no such file"),
        (["--checkpoint", "m.safetensors", "--input", "f.wav"], "expected integers of 8, 16 or 24 bits"),
        (["--checkpoint", "f.wav", "--input", "i.wav"], "f.wav: no checkpoint"),
        (["--checkpoint", "m.safetensors", "--input", "i.wav", "--output", "no/x.ssa"], "cannot be written"),
        (["--checkpoint", "m.safetensors", "--input", "i.wav", "--segment-seconds", "0"], "--segment-seconds 0"),
    ],
)
def test_refusals_are_sentences_and_leave_nothing(checkpoint, words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("m.safetensors")
    write_audio("f.wav", torch.zeros(1, 20), RATE, "float")
    write_audio("i.wav", torch.zeros(1, 20), RATE)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert compress_command.main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before
