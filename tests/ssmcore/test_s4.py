"""S4 against dense algebra, its two inits, and weights as the authors publish them."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.discretization import discretize_dense
from ssmcore.hippo import fout, legs
from ssmcore.lti import StateSpace, impulse_response
from ssmcore.mixer import Context
from ssmcore.mixers.channel_lti import ChannelLti
from ssmcore.mixers.s4 import from_published

OPTIONS = [{"init": "legs"}, {"init": "fout"}, {"low_rank": "free", "systems": 3}]


def s4(dtype=torch.float64, d=3, **options):
    torch.manual_seed(0)
    return create_mixer("s4", d, **{"d_state": 8, **options}).to(dtype)


def close(got, want, tol):
    torch.testing.assert_close(got, want, rtol=0, atol=tol * want.abs().max().item())


@pytest.mark.parametrize("length", [1, 2, 5, 64, 300])
@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_the_generating_function_is_the_power_series(options, length):
    mixer = s4(**options)
    system = mixer.discrete()
    want = torch.stack(
        [
            impulse_response(StateSpace(A, B[:, None], C[None], D.view(1, 1)), length)[:, 0, 0]
            for A, B, C, D in zip(*system, mixer.D, strict=True)
        ],
        1,
    )
    close(mixer.kernel(length), want, 1e-10)
    close(ChannelLti.kernel(mixer, length), want, 1e-11)


@pytest.mark.parametrize("n", [2, 8, 64])
@torch.no_grad()
def test_the_initial_kernel_is_hippos(n):
    """Any C of HiPPO's own basis, turned into the poles' basis, gives the kernel of the dense matrix."""
    from ssmcore.hippo import legs_dplr

    mixer = s4(d=1, d_state=n)
    V = legs_dplr(n).V
    C = torch.randn(n, dtype=torch.float64)
    mixer.C.copy_(torch.view_as_real(C.to(V.dtype) @ V)[None])
    mixer.D.zero_()
    mixer.A_imag.copy_(legs_dplr(n).Lambda.imag[None])
    for name in ("B", "P"):
        mixer.get_parameter(name).copy_(torch.view_as_real(getattr(legs_dplr(n), name))[None])
    A, B = legs(n)
    mixer.A_log.fill_(0.5).log_()
    A, B = discretize_dense(A, B[:, None], mixer.log_dt.exp()[0], "bilinear")
    want = impulse_response(StateSpace(A, B, C[None], torch.zeros(1, 1, dtype=C.dtype)), 200)[:, 0]
    close(mixer.kernel(200), want, 1e-9)


@torch.no_grad()
def test_fouts_poles_are_near_the_axis():
    Lambda, P, Q, B, C = s4(init="fout").continuous()
    assert (Lambda.real <= 0).all()
    assert (Lambda.real > -1.1e-4).all()
    torch.testing.assert_close(B[0].abs().square().sum() * 2, (fout(8).B ** 2).sum(), rtol=1e-6, atol=0)


@torch.no_grad()
def test_tied_systems_are_stable_whatever_the_parameters():
    for seed in range(20):
        mixer = s4()
        torch.manual_seed(seed)
        for p in mixer.parameters():
            p.normal_(std=2.0)
        A = mixer.discrete().A
        assert torch.linalg.eigvals(A).abs().max() <= 1 + 1e-9
        assert torch.linalg.matrix_norm(A, 2).max() <= 1 + 1e-9  # not only the eigenvalues: no state ever grows


@torch.no_grad()
def test_free_systems_may_not_be():
    mixer = s4(low_rank="free")
    mixer.Q.neg_()
    assert torch.linalg.eigvals(mixer.discrete().A).abs().max() > 1


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_a_step_of_order_n_is_the_dense_step(options):
    mixer = s4(**options)
    u, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    for got, want in zip(mixer.advance(u, h), ChannelLti.advance(mixer, u, h), strict=True):
        close(got, want, 1e-12)


@pytest.mark.parametrize("l", [31, 32, 33, 64, 100])
@torch.no_grad()
def test_blocks_go_on_from_any_state(l):
    mixer, x = s4(), torch.randn(2, l, 3, dtype=torch.float64)
    h = torch.randn(2, 3, 8, dtype=torch.float64)
    y, state = mixer.core(x, {"ssm": h}, Context(return_state=True))
    for t in range(l):
        y_t, h = mixer.advance(x[:, t], h)
        close(y[:, t], y_t + mixer.D * x[:, t], 1e-11)
    close(state["ssm"], h, 1e-11)


def test_long_kernels_in_single_precision():
    """Sixteen thousand taps from float32 parameters: one second of audio."""
    mixer = s4(torch.float32, d_state=16)
    with torch.no_grad():
        got, want = mixer.kernel(16384), ChannelLti.kernel(mixer.double(), 16384)
    assert got.dtype == torch.float32
    close(got.double(), want, 1e-6)


def test_kernels_in_pieces_have_the_same_gradient(monkeypatch):
    def gradients():
        mixer = s4(d_state=4)
        mixer.kernel(50).square().sum().backward()
        return {name: p.grad for name, p in mixer.named_parameters() if p.grad is not None}

    want = gradients()
    monkeypatch.setattr("ssmcore.mixers.s4.CAUCHY_TERMS", 40)
    got = gradients()
    assert want.keys() == got.keys() >= {"A_log", "A_imag", "B", "P", "C", "log_dt", "D"}
    for name, grad in want.items():
        close(got[name], grad, 1e-10)


@pytest.mark.parametrize("release", [3, 4])
@torch.no_grad()
def test_published_weights_keep_their_kernel(release):
    """C as published is that of a cut kernel: what it gives, convolved up to the length, is our whole kernel."""
    mixer, length = s4(systems=3), 40
    A, B, C = mixer.discrete()
    cut = C - torch.einsum("dnm,dn->dm", torch.linalg.matrix_power(A, length), C)
    cut = torch.stack([cut[:, 0::2], -cut[:, 1::2]], -1)[None] / 2
    common = {"C": cut, "B": mixer.B[None], "P": mixer.P[None]}
    if release == 3:
        theirs = {"log_dt": mixer.log_dt, "inv_w_real": mixer.A_log, "w_imag": mixer.A_imag, "L": torch.tensor(length)}
    else:
        theirs = {
            "inv_dt": mixer.log_dt[:, None],
            "A_real": mixer.A_log,
            "A_imag": -mixer.A_imag,
            "l_kernel": torch.tensor(length),
        }
    other = s4(systems=3)
    other.C.zero_()
    other.load_state_dict(from_published({**common, **theirs}), strict=False)
    other.D.copy_(mixer.D)
    close(other.kernel(100), mixer.kernel(100), 1e-6)  # weights are handed back in float32
    with pytest.raises(ValueError, match="lack"):
        from_published(common)


def test_parameters_are_shared_by_systems():
    assert s4(d=6).B.shape == (1, 4, 2)
    assert s4(d=6, systems=3).B.shape == (3, 4, 2)
    with pytest.raises(ValueError, match="divide"):
        s4(d=6, systems=4)
