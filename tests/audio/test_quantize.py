"""Levels of waveforms: torchaudio's mu-law, and even cells decoded at their centres."""

import pytest
import torch

from audio import Quantizer


@pytest.mark.parametrize("bits", [4, 8, 10])
def test_mu_law_is_torchaudios(bits):
    torchaudio = pytest.importorskip("torchaudio")
    wave = torch.cat([torch.linspace(-1, 1, 20_001), torch.randn(5_000).mul(0.01).clamp(-1, 1)])
    quantizer = Quantizer("mu-law", bits)
    want = torchaudio.functional.mu_law_encoding(wave, 2**bits)
    assert torch.equal(quantizer.encode(wave), want)
    torch.testing.assert_close(
        quantizer.decode(want), torchaudio.functional.mu_law_decoding(want, 2**bits), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["mu-law", "linear"])
@pytest.mark.parametrize("bits", [1, 3, 8, 12])
def test_levels_come_back(kind, bits):
    quantizer = Quantizer(kind, bits)
    levels = torch.arange(quantizer.levels)
    assert torch.equal(quantizer.encode(quantizer.decode(levels)), levels)
    assert torch.equal(quantizer.table(), quantizer.decode(levels))


def test_linear_decodes_at_the_centre():
    quantizer = Quantizer("linear", 8)
    wave = torch.linspace(-1, 1, 9_999)
    error = quantizer.decode(quantizer.encode(wave)) - wave
    assert error.abs().max() <= 1 / 256 + 1e-6
    assert abs(error.mean()) < 1e-4


def test_mu_law_is_unbiased():
    """The lower edge of a cell, which others decode to, is off by 0.8 % of full scale on average."""
    wave = torch.linspace(-1, 1, 100_001)
    quantizer = Quantizer()
    assert abs((quantizer.decode(quantizer.encode(wave)) - wave).mean()) < 1e-3


@pytest.mark.parametrize("kind", ["mu-law", "linear"])
def test_silence(kind):
    quantizer = Quantizer(kind)
    assert int(quantizer.encode(torch.zeros(1))) == quantizer.zero == 128
    assert quantizer.decode(torch.tensor([128])).abs() < 1 / 256 + 1e-6


def test_loud_samples_are_clipped():
    assert Quantizer().encode(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        Quantizer().encode(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="expected 0 to 255"):
        Quantizer().decode(torch.tensor([256]))
    for wrong in (("a-law", 8), ("linear", 0), ("linear", 17)):
        with pytest.raises(ValueError, match="Quantizer"):
            Quantizer(*wrong)
