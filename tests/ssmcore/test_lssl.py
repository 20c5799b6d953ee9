"""LSSL: powers by doubling, and S4 as its fast form."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.hippo import legs_dplr
from ssmcore.mixers.channel_lti import krylov


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9])
def test_krylov_by_doubling(count):
    A, B = torch.randn(2, 4, 4, dtype=torch.float64) / 2, torch.randn(2, 4, dtype=torch.float64)
    vectors, power = krylov(A, B, count)
    assert vectors.shape == (2, count, 4)
    for t in range(count):
        want = torch.einsum("dnm,dm->dn", torch.linalg.matrix_power(A, t), B)
        torch.testing.assert_close(vectors[:, t], want)
    size = 1 << (count - 1).bit_length()
    torch.testing.assert_close(power, torch.linalg.matrix_power(A, size))


@torch.no_grad()
def test_s4_has_the_same_kernel():
    """S4's DPLR form of LegS and LSSL's dense one: two algorithms, one system."""
    n = 16
    lssl, s4 = create_mixer("lssl", 2, d_state=n).double(), create_mixer("s4", 2, d_state=n).double()
    form = legs_dplr(n)
    s4.A_log.copy_((-form.Lambda.real).log()[None])
    s4.A_imag.copy_(form.Lambda.imag[None])
    for name in ("B", "P"):
        s4.get_parameter(name).copy_(torch.view_as_real(getattr(form, name))[None])
    s4.C.copy_(torch.view_as_real(lssl.C.to(form.V.dtype) @ form.V))
    for name in ("log_dt", "D"):
        s4.get_parameter(name).copy_(lssl.get_parameter(name))
    got, want = s4.kernel(300), lssl.kernel(300)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())  # LSSL's A is kept in float32


@torch.no_grad()
def test_outputs_of_a_channel_share_its_system():
    mixer = create_mixer("lssl", 2, d_state=4, outputs=3)
    A, B, C = mixer.discrete()
    assert A.shape == (6, 4, 4)
    assert torch.equal(A[0], A[2])
    assert not torch.equal(A[0], A[3])
    assert mixer.out_proj.weight.shape == (2, 6)


def test_matrices_are_trained_on_request():
    names = {name for name, _ in create_mixer("lssl", 2, d_state=4, learn=True).named_parameters()}
    assert {"A", "B"} <= names
    assert not {"A", "B"} & {name for name, _ in create_mixer("lssl", 2, d_state=4).named_parameters()}
