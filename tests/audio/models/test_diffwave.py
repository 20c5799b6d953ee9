"""DiffWave: its size, both directions of its layers, the noise it takes away, and what it learns in seconds."""

import pytest
import torch

from audio import DiffWave, DiffWaveConfig
from audio.models.diffwave import TwoSidedS4D
from ssmcore.mixer import Context
from ssmcore.mixers.s4d import S4DConfig

TINY = {"d_model": 16, "layers": 1, "d_state": 8, "d_step": 32, "pool": (2, 2)}


def test_size():
    """The paper's DiffWave + SaShiMi has 23.0M."""
    assert f"{sum(p.numel() for p in DiffWave(DiffWaveConfig(d_model=128)).parameters()) / 1e6:.1f}" == "23.0"


def test_a_layer_looks_both_ways():
    torch.manual_seed(0)
    mixer = TwoSidedS4D(3, S4DConfig(d_state=4, learn_input=True)).double()
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    ahead, back = mixer.kernel(20), mixer._kernel_back(20)
    y = torch.stack([
        sum(ahead[t - s] * x[0, s] for s in range(t + 1)) + sum(back[s - t - 1] * x[0, s] for s in range(t + 1, 20))
        for t in range(20)
    ])  # fmt: skip
    want = torch.nn.functional.glu(mixer.out_proj(torch.nn.functional.gelu(y)), -1)
    torch.testing.assert_close(mixer.mix(x, None, Context())[0][0], want, rtol=0, atol=1e-6)
    assert not mixer.causal
    assert mixer.kernel(20).shape == back.shape


def test_any_length_and_no_noise_at_first():
    model = DiffWave(DiffWaveConfig(**TINY))
    for t in (1, 7, 16):
        assert torch.equal(
            model(torch.randn(2, t), torch.tensor([0, 199])), torch.zeros(2, t)
        )  # the last map starts at 0


def test_sampling_undoes_the_noise_where_it_is_known():
    """Of a wave that is always 0.3, the noise in x is known: every step must lead back to 0.3, in few steps or many."""

    class Oracle(DiffWave):
        def forward(self, wave, step, label=None):
            kept = self.kept[step][:, None]
            return ((wave - kept.sqrt() * 0.3) / (1 - kept).sqrt()).to(wave.dtype)

    model = Oracle(DiffWaveConfig(**TINY, steps=50, beta_max=0.2))
    for steps in (50, 12, 1):
        wave = model.sample(30, [1, 2], steps=steps)
        torch.testing.assert_close(wave, torch.full((2, 30), 0.3), rtol=0, atol=1e-4)


def test_the_seed_is_the_clip():
    torch.manual_seed(0)
    model = DiffWave(DiffWaveConfig(**TINY, steps=6)).eval()
    torch.nn.init.normal_(model.out_proj[2].weight, std=0.1)
    together = model.sample(24, [5, 6])
    torch.testing.assert_close(model.sample(24, [6])[0], together[1], rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1
    told = []
    model.sample(24, [5], steps=3, tell=lambda i, n: told.append((i, n)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_labels_change_the_answer():
    torch.manual_seed(0)
    model = DiffWave(DiffWaveConfig(**TINY, labels=(3,)))
    torch.nn.init.normal_(model.out_proj[2].weight, std=0.1)
    x, step = torch.randn(1, 20).expand(3, -1), torch.full((3,), 10)
    y = model(x, step, torch.tensor([[0], [2], [-1]]))
    assert (y[0] - y[1]).abs().max() > 1e-5
    torch.testing.assert_close(y[2], model(x, step)[2])


@pytest.mark.slow
def test_it_learns_tones_by_label():
    torch.manual_seed(0)
    model = DiffWave(DiffWaveConfig(**{**TINY, "pool": (4, 4)}, labels=(2,), steps=50, beta_max=0.05))
    optimizer, time = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.arange(250)
    for _ in range(250):
        label = torch.randint(0, 2, (16, 1))
        wave = 0.7 * torch.sin(torch.pi * 2 * torch.where(label == 0, 0.05, 0.15) * time + 7 * torch.rand(16, 1))
        loss = model.loss(wave, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for value, pitch in ((0, 0.05), (1, 0.15)):
        wave = model.sample(250, [1, 2, 3, 4], label=torch.full((4, 1), value))
        assert (torch.fft.rfft(wave).abs().argmax(1) / 250 - pitch).abs().max() < 0.01


def test_bad_input_is_refused():
    model = DiffWave(DiffWaveConfig(**TINY))
    for call, text in (
        (lambda: model(torch.randn(2, 8), torch.tensor([0])), "expected"),
        (lambda: model(torch.randn(1, 8), torch.tensor([200])), "0 to 199"),
        (lambda: model(torch.randn(1, 8), torch.tensor([0]), torch.zeros(1, 1).long()), "label"),
        (lambda: model.sample(0, [1]), "samples=0"),
        (lambda: model.sample(8, [1], steps=201), "steps=201"),
        (lambda: DiffWaveConfig(beta_max=2.0), "beta"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
