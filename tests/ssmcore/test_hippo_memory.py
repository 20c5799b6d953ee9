"""The HiPPO memory against projections: LegS exactly, at any timescale; the LMU's delay."""

import math

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context
from ssmcore.projection import project_history, project_window, reconstruct


def coefficients(mixer, x, **ctx):
    return mixer.core(x, None, Context(return_state=True, **ctx))[1]["ssm"]


X = torch.randn(2, 30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_legs_is_the_projection_of_the_history():
    got = coefficients(create_mixer("hippo", 3, d_state=6).double(), X)
    torch.testing.assert_close(got, project_history(X.mT, 6)[:, :, -1], rtol=1e-9, atol=1e-11)


def test_legs_has_no_timescale():
    """Each input held three times, or each step three times as long: the same memory."""
    mixer = create_mixer("hippo", 3, d_state=6).double()
    want = coefficients(mixer, X)
    torch.testing.assert_close(coefficients(mixer, X.repeat_interleave(3, 1)), want, rtol=1e-8, atol=1e-9)
    dt = torch.full((2, 30), 3.0, dtype=torch.float64)
    torch.testing.assert_close(coefficients(mixer, X, dt=dt), want, rtol=1e-9, atol=1e-11)


def test_steps_of_their_own_are_inputs_held_as_long():
    mixer = create_mixer("hippo", 3, d_state=6).double()
    hold = torch.tensor([1, 4, 2, 1, 3])
    dt = hold.double().expand(2, -1)
    held = X[:, :5].repeat_interleave(hold, 1)
    torch.testing.assert_close(coefficients(mixer, X[:, :5], dt=dt), coefficients(mixer, held), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("measure", ["legt", "fout"])
def test_windows_are_projections_of_the_window(measure):
    mixer = create_mixer("hippo", 3, d_state=6, measure=measure, window=12.0).double()
    want = project_window(X.mT, 6, 12.0, measure)[:, :, -1]
    torch.testing.assert_close(coefficients(mixer, X), want, rtol=1e-9, atol=1e-11)
    dt = torch.ones(2, 30, dtype=torch.float64)
    torch.testing.assert_close(coefficients(mixer, X, dt=dt), want, rtol=1e-9, atol=1e-11)


def test_legt_delays():
    """The LMU's claim: of a slow signal, the coefficients know the value a whole window ago."""
    window, l = 50.0, 400
    x = torch.sin(2 * math.pi * torch.arange(l) / 100).double()[None, :, None]
    c = coefficients(create_mixer("hippo", 1, d_state=12, measure="legt", window=window).double(), x)
    then = reconstruct(c[0, 0], torch.tensor([0.5 / window], dtype=torch.float64), "legt")
    torch.testing.assert_close(then[0], x[0, l - 50, 0], rtol=0, atol=0.02)


def test_bad_windows():
    with pytest.raises(ValueError, match="window"):
        create_mixer("hippo", 4, measure="legt", window=0.0)
