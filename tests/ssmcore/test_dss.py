"""DSS: its two kernels by definition, and as S4D."""

import pytest
import torch

from ssmcore import Unsupported, create_mixer
from ssmcore.mixer import Context


def dss(**options):
    return create_mixer("dss", 3, d_state=8, **options).double()


@pytest.mark.parametrize("sign", ["falling", "rising", "mixed"])
@torch.no_grad()
def test_the_softmax_kernel_by_definition(sign):
    mixer, l = dss(form="softmax"), 30
    flip = {"falling": torch.ones(4), "rising": -torch.ones(4), "mixed": torch.tensor([1.0, -1.0, 1.0, -1.0])}[sign]
    mixer.A_re.mul_(flip)
    Lambda, dt, W = mixer.poles(), mixer.log_dt.exp(), torch.view_as_complex(mixer.W)
    rows = torch.exp(Lambda * dt[:, None] * torch.arange(l)[:, None, None])  # (l, d, n)
    want = (W / Lambda * rows / rows.sum(0)).sum(-1).real
    want[0] += mixer.D
    torch.testing.assert_close(mixer.kernel(l), want, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_steep_rises_do_not_overflow():
    mixer = create_mixer("dss", 3, d_state=8, form="softmax")
    mixer.A_re.fill_(50.0)
    assert torch.isfinite(mixer.kernel(1000)).all()


@torch.no_grad()
def test_the_exp_form_is_s4d():
    mixer = dss()
    s4d = create_mixer("s4d", 3, d_state=8, init="legs", systems=1).double()
    for name in ("log_dt", "A_log", "A_imag", "D"):
        s4d.get_parameter(name).copy_(mixer.get_parameter(name))
    s4d.C.copy_(mixer.W / 2)
    torch.testing.assert_close(mixer.kernel(40), s4d.kernel(40), rtol=1e-12, atol=1e-14)
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    for ctx in (Context(), Context(return_state=True)):
        torch.testing.assert_close(mixer.core(x, None, ctx)[0], s4d.core(x, None, ctx)[0], rtol=1e-12, atol=1e-14)


def test_the_softmax_form_takes_whole_sequences():
    with pytest.raises(Unsupported, match="softmax"):
        dss(form="softmax").init_state(1)
