"""Small generated series for the tests of this folder, and where the real ones lie."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def write_series(path, rows=600, columns=2, freq="h", seed=0, edit=None):
    """Noisy daily cycles; `edit` may change the frame of strings before it is written."""
    rng = np.random.default_rng(seed)
    steps = np.arange(rows)
    dates = pd.date_range("2021-03-01", periods=rows, freq=freq)
    frame = pd.DataFrame({"date": dates.astype(str)})
    for c in range(columns):
        wave = (c + 1) * np.sin(2 * np.pi * steps / 24 + c) + 0.2 * np.cumsum(rng.normal(size=rows)) / 5
        frame[f"x{c}"] = np.round(10 * c + wave + 0.1 * rng.normal(size=rows), 6)
    frame = frame.astype(str)
    if edit:
        frame = edit(frame)
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def write_csv():
    """The function above."""
    return write_series


@pytest.fixture
def csv_file(tmp_path):
    """A clean file of 600 hours and 2 columns."""
    return write_series(tmp_path / "waves.csv")


@pytest.fixture(scope="session")
def etth1():
    """The real ETTh1 file; it is never part of the project."""
    folder = Path(os.environ.get("SSM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "timeseries" / "ETTh1.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set SSM_SHARED_DATA to the folder that holds timeseries/ETTh1.csv.gz")
    return path


@pytest.fixture(scope="session")
def command_env():
    """Environment of a subprocess that finds the checkout, installed or not."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


@pytest.fixture
def one_thread():
    """Sums in another order give other bits: as many threads here as in the subprocess."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
