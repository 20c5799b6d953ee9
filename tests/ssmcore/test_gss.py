"""GSS: its core is S4D with steps of one, between its gates."""

import torch
import torch.nn.functional as F

from ssmcore import create_mixer
from ssmcore.mixer import Context
from ssmcore.mixers.diagonal_lti import run_diagonal


@torch.no_grad()
def test_the_core_is_s4d_and_the_gates_by_hand():
    mixer, x = create_mixer("gss", 8, d_state=6).double(), torch.randn(2, 11, 8, dtype=torch.float64)
    s4d = create_mixer("s4d", 2, d_state=6, systems=1).double()
    for name in ("A_log", "A_imag"):
        s4d.get_parameter(name).copy_(mixer.get_parameter(name)[None])
    s4d.C.copy_(mixer.C)
    s4d.D.copy_(mixer.D)
    s4d.log_dt.zero_()
    v = F.gelu(x @ mixer.v_proj.weight.T)
    core, _ = s4d.core(v, None, Context())
    u = F.gelu(x @ mixer.u_proj.weight.T)
    want = (core @ mixer.up_proj.weight.T * u) @ mixer.out_proj.weight.T + mixer.out_proj.bias
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_the_core_by_its_kernel():
    """K[t] = Re sum over both halves of C (e^Λ - 1) / Λ e^(Λ t), Λ = -e^A_log + i A_imag, one for all channels."""
    torch.manual_seed(0)
    mixer, v = create_mixer("gss", 8, d_state=6).double(), torch.randn(11, 2, dtype=torch.float64)
    poles, C = torch.complex(-mixer.A_log.exp(), mixer.A_imag), torch.view_as_complex(mixer.C)
    assert (mixer.A_imag > 0).all()
    K = torch.stack([2 * (C * (poles.exp() - 1) / poles * (poles * t).exp()).sum(-1).real for t in range(11)])
    want = torch.stack([sum(K[s] * v[t - s] for s in range(t + 1)) for t in range(11)]) + mixer.D * v
    got = run_diagonal(mixer.continuous(), mixer.D, v[None], None, Context(), "zoh")[0][0]
    torch.testing.assert_close(got, want)
