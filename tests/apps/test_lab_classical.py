"""The classical corner as commands: what is printed is checked against closed forms and dense algebra."""

import math

import pytest

from apps.lab import spring, tracking
from apps.lab.__main__ import main
from apps.lab.config import KalmanConfig, SpringConfig


def test_a_spring_is_studied(tmp_path, capsys):
    assert main(["spring", "--m=2", "--c=0.8", "--k=6", f"--output={tmp_path}"]) == 0
    text = capsys.readouterr().out
    frequency, ratio = math.sqrt(3), 0.8 / (2 * math.sqrt(12))
    assert f"{frequency:.4g}" in text
    assert f"{ratio:.4g}" in text
    assert f"{-ratio * frequency:.4g}" in text
    assert "True / True" in text
    assert (tmp_path / "spring.png").stat().st_size > 1000


def test_the_motion_is_exact_and_the_identification_close(tmp_path):
    facts = dict(spring.run(SpringConfig(output=str(tmp_path))).facts)
    assert float(facts["largest error against the closed forms, m"]) < 1e-12
    found = [float(value) for value in facts["identified m, c, k"].split(",")]
    assert found == pytest.approx([1.0, 0.4, 4.0], rel=0.05)


def test_a_spring_without_damper_is_not_stable(tmp_path):
    facts = dict(spring.run(SpringConfig(c=0.0, noise=0.0, output=str(tmp_path))).facts)
    assert facts["stable, by poles / sampled poles"] == "False / False"
    assert facts["Lyapunov function"] == "none"


def test_a_vehicle_is_tracked(tmp_path, capsys):
    found = tracking.run(KalmanConfig(output=str(tmp_path)))
    assert found.difference < 1e-10
    assert found.log_likelihood == pytest.approx(found.dense, abs=1e-8)
    assert found.errors["smoothed"] < found.errors["filtered"] < found.errors["measured"]
    assert found.errors["smoothed, unseen"] < found.errors["filtered, unseen"]
    assert main(["kalman", "--missing=0", f"--output={tmp_path}"]) == 0
    assert "dense Gaussian" in capsys.readouterr().out
    assert (tmp_path / "kalman.png").stat().st_size > 1000


def test_a_smoothers_interval_covers_what_it_says(tmp_path):
    runs = [tracking.run(KalmanConfig(seed=seed, steps=100, output=str(tmp_path))).covered for seed in range(3)]
    assert 0.88 < sum(runs) / 3 <= 1


def test_numbers_that_cannot_be_are_named(tmp_path, capsys):
    assert main(["spring", "--m=-1", f"--output={tmp_path}"]) == 2
    assert "m=-1" in capsys.readouterr().err
    assert main(["kalman", "--steps=3", f"--output={tmp_path}"]) == 2
    assert "steps=3" in capsys.readouterr().err
