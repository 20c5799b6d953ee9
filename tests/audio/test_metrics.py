"""Metrics against closed forms, detectors against sounds that set them off, the classifier on tones."""

import math

import numpy as np
import pytest
import torch

from audio.classifier import look, spectrograms, train_classifier
from audio.detectors import clipping, likeness, nearest_clip, runaway_noise
from audio.metrics import (
    activation,
    different_bins,
    frechet_distance,
    inception,
    inception_upstream,
    modified_inception,
    quality,
)
from audio.spectrogram import draw_clips, log_mel

RATE = 8000


def normal(n, d=4, mean=0.0, scale=1.0, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + mean


def test_frechet_distance_of_gaussians():
    """Between N(m, s^2 I) and N(0, I) in d dimensions: d m^2 + d (s - 1)^2."""
    assert frechet_distance(normal(500), normal(500)) == pytest.approx(0, abs=1e-6)
    far = frechet_distance(normal(40_000, mean=2.0, scale=3.0, seed=1), normal(40_000))
    assert far == pytest.approx(4 * 4 + 4 * 4, rel=0.03)
    few = frechet_distance(normal(3, 8, seed=1), normal(50, 8))  # singular covariance
    assert 0 < few < 100


def onehot(classes, count, sure=1.0):
    p = torch.full((len(classes), count), (1 - sure) / (count - 1))
    p[torch.arange(len(classes)), torch.tensor(classes)] = sure
    return p


def test_inception_scores_at_their_ends():
    sure = onehot([0, 1, 2, 3] * 5, 4)
    assert inception(sure) == pytest.approx(4, rel=1e-6)
    assert inception(onehot([2] * 20, 4)) == pytest.approx(1)
    assert inception(torch.full((20, 4), 0.25)) == pytest.approx(1)
    assert modified_inception(torch.full((20, 4), 0.25)) == pytest.approx(1)
    soft = onehot([0, 1] * 10, 2, 0.9)
    # Half of the pairs differ, with KL 0.8 log 9; the others agree.
    assert modified_inception(soft) == pytest.approx(math.exp(0.5 * 0.8 * math.log(9)), rel=1e-6)


def test_upstreams_inception_forgets_how_frequent_the_classes_are():
    even = onehot([0, 1, 2, 3] * 25, 4, 0.7)
    skewed = onehot([0] * 85 + [1] * 5 + [2] * 5 + [3] * 5, 4, 0.7)
    assert inception_upstream(even) == pytest.approx(inception(even), rel=1e-6)
    assert inception_upstream(skewed) > 1.05 * inception(skewed)  # 1.244 and 1.170
    by_hand = [skewed[:, c] / skewed[:, c].sum() for c in range(4)]
    divergences = [float((r * (r * 100).log()).sum()) for r in by_hand]
    assert inception_upstream(skewed) == pytest.approx(math.exp(sum(divergences) / 4), rel=1e-5)


def test_activation():
    real = onehot([0, 1] * 10, 2)
    assert activation(real, real) == pytest.approx(0, abs=1e-6)
    assert activation(torch.full((10, 2), 0.5), real) == pytest.approx(math.log(2))
    assert activation(onehot([0] * 9 + [1], 2), real) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5))


def test_different_bins():
    assert different_bins(normal(800, seed=3), normal(1000)) < 0.2
    assert different_bins(normal(800, mean=3.0, seed=3), normal(1000)) > 0.5


def test_quality_of_the_training_clips_themselves():
    features, chances = normal(100), normal(100, 3).softmax(-1)
    same = quality(features, chances, features, chances)
    assert same.fid == pytest.approx(0, abs=1e-5)
    assert same.different_bins == 0
    assert len(same.row()) == 6
    with pytest.raises(ValueError, match="at least two"):
        quality(features[:1], chances[:1], features, chances)


def tone(frequency, seconds=0.5, seed=0):
    t = torch.arange(round(seconds * RATE)) / RATE
    hiss = torch.randn(len(t), generator=torch.Generator().manual_seed(seed))
    return 0.5 * torch.sin(2 * torch.pi * frequency * t) + 0.02 * hiss


def test_runaway_noise_is_found_where_it_starts():
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(4096, generator=rng) * 2 - 1
    lost = torch.cat([tone(300, 1.0), noise])
    found = runaway_noise(lost)
    assert found.start is not None
    assert abs(found.start - 8000) <= 256
    assert found.share > 0.25
    for fine in (tone(300, 1.0), 0.05 * noise, torch.zeros(4000), torch.cat([tone(300), noise[:700], tone(300)])):
        assert runaway_noise(fine).start is None
    assert runaway_noise(torch.zeros(10)).start is None


def test_clipping_counts_runs_only():
    wave = 0.5 * torch.ones(100)
    assert clipping(wave) == 0
    wave[10:12] = 1.0
    assert clipping(wave) == 0
    wave[50:60] = -1.0
    assert clipping(wave) == pytest.approx(0.1)
    assert clipping((3 * tone(200)).clamp(-1, 1)) > 0.3


def test_likeness_knows_a_copy_at_any_shift_and_loudness():
    rng = torch.Generator().manual_seed(0)
    original, other = (torch.randn(3000, generator=rng) for _ in range(2))
    assert likeness(original, original) == pytest.approx(1)
    assert likeness(0.1 * original[700:2500], original) == pytest.approx(1)
    assert likeness(torch.cat([torch.zeros(300), original[:2000]]), original) == pytest.approx(1, abs=1e-6)
    assert likeness(original, other) < 0.15
    features = torch.stack([torch.zeros(2), torch.ones(2), 5 * torch.ones(2)])
    waves = [other, original, -other]
    assert nearest_clip(original[100:], torch.ones(2), waves, features, candidates=2) == (1, pytest.approx(1))


def test_classifier_learns_tones_and_leaves_the_random_state_alone():
    pitches = (200, 500, 1200)
    waves = [tone(pitches[i % 3] * (1 + 0.01 * (i % 5)), 0.3 + 0.05 * (i % 4), i) for i in range(48)]
    classes = torch.tensor([i % 3 for i in range(48)])
    pictures = spectrograms(waves, RATE)
    assert pictures.shape[:2] == (48, 40)
    before = torch.get_rng_state()
    model = train_classifier(pictures[:36], classes[:36], 3, epochs=12)
    assert torch.equal(torch.get_rng_state(), before)
    features, chances = look(model, pictures[36:])
    assert features.shape == (12, 64)
    assert torch.allclose(chances.sum(1), torch.ones(12), atol=1e-5)
    assert float((chances.argmax(1) == classes[36:]).float().mean()) > 0.9


def test_mel_follows_the_pitch(tmp_path):
    low, high = (log_mel(tone(f), RATE).mean(-1).argmax() for f in (200, 2000))
    assert low < high
    draw_clips(tmp_path / "a.png", [tone(300), tone(500)], RATE, ["one", "two"])
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_numpy_seed_is_not_touched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    different_bins(normal(100), normal(100))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
