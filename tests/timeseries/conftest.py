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


def entries(n=3, length=160, channels=None, freq="h", seed=0, features=False, future=0):
    """GluonTS data entries of unequal lengths: daily cycles on different levels, with noise."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        t = np.arange(length + 10 * i)
        dynamic = rng.normal(size=(2, len(t) + future))
        x = 20 * (i + 1) + (i + 1) * (np.sin(2 * np.pi * t / 24 + i) + 0.2 * rng.normal(size=len(t)))
        if features:
            x = x + 2 * (i + 1) * dynamic[0, : len(t)]
        if channels:
            x = np.stack([x * (k + 1) for k in range(channels)])
        entry = {
            "start": pd.Period("2021-03-01", freq=freq),
            "target": x,
            "item_id": f"item {i}",
            "info": {"place": i},
            "an unknown field": object(),
        }
        if features:
            entry |= {
                "feat_dynamic_real": dynamic,
                "past_feat_dynamic_real": rng.normal(size=(1, len(t))),
                "feat_static_real": np.array([float(i), 1.0]),
                "feat_static_cat": np.array([i, 0]),
            }
        made.append(entry)
    return made


@pytest.fixture(scope="session")
def make_entries():
    """The function above."""
    return entries


def cut_target(made, steps):
    """The same entries without their last steps; covariates stay."""
    return [{**entry, "target": np.asarray(entry["target"])[..., : -steps or None]} for entry in made]


@pytest.fixture(scope="session")
def cut_entries():
    """The function above."""
    return cut_target


@pytest.fixture(scope="session")
def small():
    """Options that make any estimator quick: `small(kind, **more)` gives an untrained estimator."""
    from timeseries import estimator
    from timeseries.config import (
        FitConfig,
        LinearSSMConfig,
        PatchConfig,
        SimbaConfig,
        SMambaConfig,
        StreamConfig,
        TimeMachineConfig,
    )

    linear = LinearSSMConfig(time_constants=(2.0, 24.0), daily_harmonics=2, weekly_harmonics=0, median=False)
    stream = StreamConfig(d_model=4, num_layers=1, origins=4, dropout=0.0)
    patch = PatchConfig(d_model=4, num_layers=1, d_state=4, patch_length=8, stride=8, dropout=0.0)
    variates = SMambaConfig(d_model=8, d_ff=8, num_layers=1, dropout=0.0)
    scales = TimeMachineConfig(n1=8, n2=4, dropout=0.0)
    spectral = SimbaConfig(d_model=8, num_layers=1, blocks=2, patch_length=8, stride=8, dropout=0.0)
    tiny = {"name": "mamba", "d_state": 2, "d_conv": 2, "expand": 1}
    fit = FitConfig(epochs=1, steps_per_epoch=2, batch_size=4, accelerator="cpu", memory=40)
    kinds = {
        "linear": (estimator.LinearSSMEstimator, {}),
        "s4d": (estimator.S4DForecaster, {"mixer": {"name": "s4d", "d_state": 4}, "stack": stream}),
        "mamba": (estimator.MambaForecaster, {"mixer": {"name": "mamba", "d_state": 4}, "stack": stream}),
        "patch": (estimator.MambaForecaster, {"mixer": "mamba", "stack": patch, "context_length": 24}),
        "s_mamba": (estimator.SMambaForecaster, {"stack": variates, "context_length": 24}),
        "time_machine": (estimator.TimeMachineForecaster, {"mixer": tiny, "stack": scales, "context_length": 24}),
        "simba": (estimator.SimbaForecaster, {"mixer": tiny, "stack": spectral, "context_length": 24}),
    }

    def make(kind, prediction_length=6, **more):
        build, options = kinds[kind]
        return build(prediction_length, **{"linear": linear, "fit": fit, **options, **more})

    return make
