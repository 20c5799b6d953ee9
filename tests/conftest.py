"""Settings for the whole suite: two threads, a reproducible hypothesis profile, and where the real data may lie."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
# Derandomized, so that a run on another machine draws the same cases; no deadline, because the first call compiles.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True, max_examples=30)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, beside the checkout or at $SSM_SHARED_DATA; skips where there is none."""
    folder = Path(os.environ.get("SSM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data sets are not at {folder} (set SSM_SHARED_DATA)")
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in every run and in any order of tests."""
    torch.manual_seed(0)
