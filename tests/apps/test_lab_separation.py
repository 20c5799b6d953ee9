"""What the lab is for: tasks tell mixers apart. Trainings of a minute each, so in the slow tier.

Bounds are those that a first measurement with other code set (two layers of 32 channels, batches of 32, rate 0.003).
"""

import pytest

from apps.lab.config import LabConfig
from apps.lab.experiment import run


def scores(task, mixer, folder, options=None):
    config = LabConfig(task=(task,), mixer=mixer, options=options or {}, output=str(folder))
    return run(config, silent=True).scores


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["gru", "rglru", "mamba", "mamba2", "gated_deltanet"])
def test_selective_mixers_keep_an_induction_head_beyond_the_trained_length(mixer, tmp_path):
    found = scores("induction", mixer, tmp_path)
    assert found["1"] >= 0.99
    assert found["2"] >= 0.95
    assert found["4"] >= 0.70


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "options", "at2"), [("mamba_s4", {}, 0.65), ("attention", {"num_heads": 4}, 0.6)])
def test_their_time_invariant_twin_and_attention_solve_the_trained_length_only(mixer, options, at2, tmp_path):
    found = scores("induction", mixer, tmp_path, options)
    assert found["1"] >= 0.99
    assert found["2"] <= at2
    assert found["4"] <= 0.40
