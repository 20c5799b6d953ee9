"""The functions keep upstream's layouts and in-place updates, against loops over time in float64."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore.compat import (
    causal_conv1d_fn,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
    mamba_chunk_scan_combined,
    mamba_inner_fn,
    selective_scan_fn,
    selective_state_update,
)
from ssmcore.compat.conv import causal_conv1d_ref
from ssmcore.compat.ssd import ssd_minimal_discrete


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def conv_loop(x, weight, bias, before=None):
    """Shapes (b, d, l), (d, w), (d,), (b, d, w - 1)."""
    w = weight.shape[1]
    before = x.new_zeros(*x.shape[:2], w - 1) if before is None else before
    seen = torch.cat([before, x], 2)
    return torch.stack([(seen[:, :, t : t + w] * weight).sum(2) + bias for t in range(x.shape[2])], 2)


class TestConvolution:
    @pytest.mark.parametrize("width", [1, 2, 4, 7])
    def test_whole(self, width):
        x, weight, bias = normal(2, 3, 9), normal(3, width, seed=1), normal(3, seed=2)
        torch.testing.assert_close(causal_conv1d_fn(x, weight, bias), conv_loop(x, weight, bias))
        silu = causal_conv1d_fn(x, weight, bias, activation="swish")
        torch.testing.assert_close(silu, F.silu(conv_loop(x, weight, bias)))

    def test_states(self):
        x, weight, bias = normal(2, 3, 9), normal(3, 4, seed=1), normal(3, seed=2)
        before, kept = normal(2, 3, 3, seed=3), torch.zeros(2, 3, 3, dtype=torch.float64)
        y, last = causal_conv1d_fn(
            x, weight, bias, initial_states=before, return_final_states=True, final_states_out=kept
        )
        torch.testing.assert_close(y, conv_loop(x, weight, bias, before))
        torch.testing.assert_close(last, x[:, :, -3:])
        assert last is kept

    def test_the_order_of_upstreams_reference(self):
        x, weight, bias, before = normal(2, 3, 9), normal(3, 4, seed=1), normal(3, seed=2), normal(2, 3, 3, seed=3)
        y, last = causal_conv1d_ref(x, weight, bias, before, True)
        torch.testing.assert_close(y, conv_loop(x, weight, bias, before))
        torch.testing.assert_close(last, x[:, :, -3:])

    def test_packed(self):
        x, weight, bias = normal(2, 3, 9), normal(3, 4, seed=1), normal(3, seed=2)
        index = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2], [0] * 9], dtype=torch.int32)
        y = causal_conv1d_fn(x, weight, bias, seq_idx=index)
        for item, start, stop in ((0, 0, 4), (0, 4, 6), (0, 6, 9), (1, 0, 9)):
            at = (slice(item, item + 1), slice(None), slice(start, stop))
            torch.testing.assert_close(y[at], conv_loop(x[at], weight, bias))

    @pytest.mark.parametrize("tokens", [1, 3])
    @pytest.mark.parametrize("kept", [3, 4, 6])
    @pytest.mark.parametrize("ring", [False, True])
    def test_updates_are_the_whole(self, tokens, kept, ring):
        x, weight, bias = normal(2, 3, 12), normal(3, 4, seed=1), normal(3, seed=2)
        state, outputs = torch.zeros(2, 3, kept, dtype=torch.float64), []
        for t in range(0, 12, tokens):
            seen = torch.full((2,), t, dtype=torch.int32) if ring else None
            piece = x[:, :, t] if tokens == 1 else x[:, :, t : t + tokens]
            y = causal_conv1d_update(piece, state, weight, bias, "silu", seen)
            assert y.shape == piece.shape
            outputs.append(y.unflatten(1, (3, -1)) if tokens == 1 else y)
        torch.testing.assert_close(torch.cat(outputs, 2), F.silu(conv_loop(x, weight, bias)))
        expected = x[:, :, -kept:]
        torch.testing.assert_close(state, expected.roll(12 % kept, 2) if ring else expected)

    def test_slots(self):
        x, weight, bias = normal(3, 5), normal(5, 4, seed=1), normal(5, seed=2)
        states, slots = normal(6, 5, 4, seed=3), torch.tensor([4, -1, 0])
        before = states.clone()
        y = causal_conv1d_update(x, states, weight, bias, conv_state_indices=slots)
        for item, slot in ((0, 4), (2, 0)):
            own = before[slot : slot + 1].clone()
            torch.testing.assert_close(y[item], causal_conv1d_update(x[item : item + 1], own, weight, bias)[0])
            torch.testing.assert_close(states[slot], own[0])
        assert (y[1] == 0).all()
        assert torch.equal(states[[1, 2, 3, 5]], before[[1, 2, 3, 5]])

    def test_states_of_packed_sequences(self):
        x = normal(9, 2)
        states = causal_conv1d_varlen_states(x, torch.tensor([0, 2, 9]), 3)
        torch.testing.assert_close(states[0], torch.cat([torch.zeros(1, 2, dtype=x.dtype), x[:2]]).T)
        torch.testing.assert_close(states[1], x[6:9].T)


def scan_loop(u, delta, A, B, C, D, z, bias):
    """Channel-first; B and C (b, n, l), real. Also the last state."""
    step = F.softplus(delta + bias[:, None])
    h, outputs = A.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        h = torch.exp(step[:, :, t, None] * A) * h + (step[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(2) + D * u[:, :, t])
    return torch.stack(outputs, 2) * F.silu(z), h


def scan_arguments(b=2, d=4, l=7, n=3):
    A = -normal(d, n, seed=1).abs()
    return (
        normal(b, d, l),
        normal(b, d, l, seed=2),
        A,
        normal(b, n, l, seed=3),
        normal(b, n, l, seed=4),
        normal(d, seed=5),
        normal(b, d, l, seed=6),
        normal(d, seed=7),
    )


class TestSelectiveScan:
    def test_layout(self):
        u, delta, A, B, C, D, z, bias = scan_arguments()
        y, last = selective_scan_fn(u, delta, A, B, C, D, z, bias, True, return_last_state=True)
        expected, state = scan_loop(u, delta, A, B, C, D, z, bias)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(last, state)

    def test_groups_and_constants(self):
        u, delta, A, B, C, D, z, bias = scan_arguments()
        halves = [selective_scan_fn(u[:, i : i + 2], delta[:, i : i + 2], A[i : i + 2], B * (i + 1), C * (i - 5))
                  for i in (0, 2)]  # fmt: skip
        grouped = selective_scan_fn(u, delta, A, torch.stack([B, 3 * B], 1), torch.stack([-5 * C, -3 * C], 1))
        torch.testing.assert_close(grouped, torch.cat(halves, 1))
        constant = selective_scan_fn(u, delta, A, B[:1, :, 0].expand(4, -1), C)
        torch.testing.assert_close(constant, selective_scan_fn(u, delta, A, B[:1, :, :1].expand(2, -1, 7), C))

    def test_complex(self):
        """The last axis of a varying B or C is real and imaginary parts in turn."""
        u, delta, A, _, _, D, z, bias = scan_arguments()
        A, B, C = torch.complex(A, normal(4, 3)), normal(2, 3, 14, seed=3), normal(2, 3, 14, seed=4)
        y = selective_scan_fn(u, delta.abs(), A, B, C)
        h = torch.zeros(2, 4, 3, dtype=torch.complex128)
        B, C = (torch.complex(M[..., ::2], M[..., 1::2]) for M in (B, C))
        for t in range(7):
            step = delta.abs()[:, :, t, None]
            h = torch.exp(step * A) * h + step * u[:, :, t, None] * B[:, None, :, t]
            torch.testing.assert_close(y[:, :, t], 2 * (h * C[:, None, :, t]).sum(2).real)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        given = [t if t is None else t.to(dtype if t.ndim > 2 else torch.float32) for t in scan_arguments()]
        y = selective_scan_fn(*given, True)
        assert y.dtype == dtype
        expected = selective_scan_fn(*(t.double() for t in given), True)
        torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)

    def test_inner(self):
        """The fused block is its parts, and its gradients reach every parameter."""
        b, d, l, n, r, e = 2, 6, 8, 3, 2, 5
        shapes = dict(xz=(b, 2 * d, l), conv=(d, 1, 4), conv_bias=(d,), x_proj=(r + 2 * n, d), dt_proj=(d, r),
                      out=(e, d), out_bias=(e,), A=(d, n), D=(d,), bias=(d,))  # fmt: skip
        p = {k: (0.5 * normal(*s, seed=i)).requires_grad_() for i, (k, s) in enumerate(shapes.items())}
        A = -p["A"].abs()
        y = mamba_inner_fn(p["xz"], p["conv"], p["conv_bias"], p["x_proj"], p["dt_proj"], p["out"], p["out_bias"], A,
                           D=p["D"], delta_bias=p["bias"])  # fmt: skip
        u, z = p["xz"].chunk(2, 1)
        u = F.silu(conv_loop(u, p["conv"][:, 0], p["conv_bias"]))
        low, B, C = torch.einsum("rd,bdl->brl", p["x_proj"], u).split([r, n, n], 1)
        s, _ = scan_loop(u, torch.einsum("dr,brl->bdl", p["dt_proj"], low), A, B, C, p["D"], z, p["bias"])
        expected = torch.einsum("ed,bdl->ble", p["out"], s) + p["out_bias"]
        torch.testing.assert_close(y, expected)
        weight = normal(b, l, e, seed=20)
        for actual, wanted in zip(
            torch.autograd.grad((y * weight).sum(), p.values(), retain_graph=True),
            torch.autograd.grad((expected * weight).sum(), p.values()),
            strict=True,
        ):
            torch.testing.assert_close(actual, wanted)

    def test_inner_norms(self):
        """The steps are normalised after their projection."""
        b, d, l, n, r = 1, 4, 5, 3, 2
        xz, conv, x_proj, dt_proj = (
            normal(b, 2 * d, l),
            normal(d, 1, 2),
            normal(r + 2 * n, d, seed=2),
            normal(d, r, seed=3),
        )
        out, A, bias, norms = (
            torch.eye(d).double(),
            -normal(d, n).abs(),
            normal(d),
            [normal(n), normal(n, seed=9), normal(d)],
        )
        y = mamba_inner_fn(
            xz, conv, None, x_proj, dt_proj, out, None, A, D=bias, delta_bias=bias, b_rms_weight=norms[0],
            c_rms_weight=norms[1], dt_rms_weight=norms[2], b_c_dt_rms_eps=1e-3,
        )  # fmt: skip
        u, z = xz.chunk(2, 1)
        u = F.silu(conv_loop(u, conv[:, 0], torch.zeros(d)))
        low, B, C = (u.transpose(1, 2) @ x_proj.T).split([r, n, n], 2)
        B, C, dt = (M * torch.rsqrt(M.square().mean(2, keepdim=True) + 1e-3) * w
                    for M, w in zip((B, C, low @ dt_proj.T), norms, strict=True))  # fmt: skip
        expected, _ = scan_loop(u, dt.transpose(1, 2), A, B.transpose(1, 2), C.transpose(1, 2), bias, z, bias)
        torch.testing.assert_close(y, expected.transpose(1, 2))


class TestStateUpdate:
    def test_steps_are_the_scan(self):
        u, delta, A, B, C, D, z, bias = scan_arguments()
        expected, last = scan_loop(u, delta, A, B, C, D, z, bias)
        state = torch.zeros(2, 4, 3, dtype=torch.float64)
        for t in range(7):
            y = selective_state_update(
                state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, z[..., t], bias, dt_softplus=True
            )
            torch.testing.assert_close(y, expected[..., t])
        torch.testing.assert_close(state, last)

    @pytest.mark.parametrize("spread", [True, False])
    def test_heads_are_the_chunked_scan(self, spread):
        """Mamba-2 hands over one decay a head, spread over head width and state by strides of 0, or copied."""
        b, l, h, p, g, n = 2, 6, 4, 3, 2, 5
        x, dt, A = normal(b, l, h, p), normal(b, l, h, seed=1), -normal(h, seed=2).abs()
        B, C, D = normal(b, l, g, n, seed=3), normal(b, l, g, n, seed=4), normal(h, p, seed=5)
        bias, z = normal(h, seed=6), normal(b, l, h, p, seed=7)
        y, last = mamba_chunk_scan_combined(x, dt, A, B, C, 4, D, z, bias, dt_softplus=True, return_final_states=True)
        state = torch.zeros(b, h, p, n, dtype=torch.float64)
        wide = (dt[..., None].expand(-1, -1, -1, p), A[:, None, None].expand(-1, p, n), bias[:, None].expand(-1, p))
        wide = wide if spread else tuple(t.contiguous() for t in wide)
        for t in range(l):
            step = selective_state_update(
                state, x[:, t], wide[0][:, t], wide[1], B[:, t], C[:, t], D, z[:, t], wide[2], dt_softplus=True
            )
            torch.testing.assert_close(step, y[:, t], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state, last, rtol=1e-6, atol=1e-6)

    def test_slots_and_bfloat16(self):
        states, slots = normal(5, 4, 3, dtype=torch.bfloat16), torch.tensor([3, 0])
        before, A = states.clone(), -normal(4, 3).abs().float()
        u, dt, B = (normal(2, k, seed=k, dtype=torch.bfloat16) for k in (4, 4, 3))
        y = selective_state_update(states, u, dt, A, B, B, state_batch_indices=slots)
        h = torch.exp(dt.float()[..., None] * A) * before[slots].float()
        h = h + (dt.float() * u.float())[..., None] * B.float()[:, None]
        torch.testing.assert_close(states[slots], h.bfloat16())
        torch.testing.assert_close(y, (h * B.float()[:, None]).sum(2).bfloat16())
        assert torch.equal(states[[1, 2, 4]], before[[1, 2, 4]])


class TestChunkedScan:
    def loop(self, x, dt, A, B, C, state):
        b, l, h, p = x.shape
        B, C = (M.repeat_interleave(h // M.shape[2], 2) for M in (B, C))
        outputs = []
        for t in range(l):
            decay = torch.exp(dt[:, t] * A)[..., None, None]
            state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
            outputs.append((state * C[:, t, :, None, :]).sum(3))
        return torch.stack(outputs, 1), state

    def arguments(self, b=2, l=11, h=4, p=3, g=2, n=5):
        return (normal(b, l, h, p), normal(b, l, h, seed=1).abs(), -normal(h, seed=2).abs(), normal(b, l, g, n, seed=3),
                normal(b, l, g, n, seed=4))  # fmt: skip

    def test_states_and_limits(self):
        x, dt, A, B, C = self.arguments()
        state = normal(2, 4, 3, 5, seed=5)
        y, last = mamba_chunk_scan_combined(
            x, dt, A, B, C, 4, initial_states=state, dt_limit=(0.3, 0.9), return_final_states=True
        )
        expected, expected_last = self.loop(x, dt.clamp(0.3, 0.9), A, B, C, state)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(last, expected_last)

    def test_packed(self):
        x, dt, A, B, C = self.arguments()
        state, index = normal(2, 4, 3, 5, seed=5), torch.tensor([[0] * 4 + [1] * 7, [0] * 10 + [1]])
        y, last = mamba_chunk_scan_combined(
            x, dt, A, B, C, 4, initial_states=state, seq_idx=index, return_final_states=True
        )
        zero = torch.zeros_like(state[:1])
        for item, cut in ((0, 4), (1, 10)):
            own = slice(item, item + 1)
            first, _ = self.loop(x[own, :cut], dt[own, :cut], A, B[own, :cut], C[own, :cut], state[own])
            rest, end = self.loop(x[own, cut:], dt[own, cut:], A, B[own, cut:], C[own, cut:], zero)
            torch.testing.assert_close(y[own], torch.cat([first, rest], 1))
            torch.testing.assert_close(last[own], end)

    def test_states_of_packed_sequences(self):
        x, dt, A, B, C = self.arguments(b=1)
        y, each = mamba_chunk_scan_combined(
            x, dt, A, B, C, 4, cu_seqlens=torch.tensor([0, 4, 11]), return_varlen_states=True
        )
        zero = torch.zeros(1, 4, 3, 5, dtype=torch.float64)
        for i, cut in enumerate((slice(0, 4), slice(4, 11))):
            expected, last = self.loop(x[:, cut], dt[:, cut], A, B[:, cut], C[:, cut], zero)
            torch.testing.assert_close(y[:, cut], expected)
            torch.testing.assert_close(each[i : i + 1], last)

    def test_what_upstream_teaches_with(self):
        x, _, _, B, C = self.arguments(g=4)
        log_decay, state = -normal(2, 11, 4, seed=1).abs(), normal(2, 4, 3, 5, seed=5)
        y, last = ssd_minimal_discrete(x, log_decay, B, C, 4, initial_states=state[:, None])
        outputs = []
        for t in range(11):
            kv = x[:, t, :, :, None] * B[:, t, :, None, :]
            state = log_decay[:, t].exp()[..., None, None] * state + kv
            outputs.append((state * C[:, t, :, None, :]).sum(3))
        torch.testing.assert_close(y, torch.stack(outputs, 1))
        torch.testing.assert_close(last, state)


class TestBadInput:
    def test_shapes_in_their_own_layout(self):
        u, delta, A, B, C, *_ = scan_arguments()
        with pytest.raises(
            ValueError, match=r"delta has shape \(2, 4, 6\), expected \(b=2 from u, d=4 from u, l=7 from u"
        ):
            selective_scan_fn(u, delta[..., 1:], A, B, C)
        with pytest.raises(ValueError, match=r"B has shape \(2, 4, 7\), expected \(b=2 from u, n=3 from A, l=7"):
            selective_scan_fn(u, delta, A, delta, C)
        with pytest.raises(ValueError, match="xz has 4 channels, expected 2 d = 8"):
            mamba_inner_fn(u, normal(4, 1, 4), None, normal(8, 4), normal(4, 2), normal(5, 4), None, A)
        with pytest.raises(ValueError, match="4 heads cannot share 3 groups"):
            mamba_chunk_scan_combined(normal(1, 2, 4, 3), normal(1, 2, 4), normal(4), normal(1, 2, 3, 5),
                                      normal(1, 2, 3, 5), 4)  # fmt: skip

    def test_dtypes(self):
        u, delta, A, B, C, *_ = scan_arguments()
        with pytest.raises(ValueError, match="selective_scan_fn: u has dtype int64"):
            selective_scan_fn(u.long(), delta, A, B, C)
        with pytest.raises(ValueError, match="causal_conv1d_fn: weight has dtype complex128"):
            causal_conv1d_fn(u, torch.zeros(4, 2, dtype=torch.complex128))
        with pytest.raises(ValueError, match="selective_scan_fn: u must be a torch.Tensor, got list"):
            selective_scan_fn([1.0], delta, A, B, C)

    def test_slots(self):
        u, state = normal(2, 4), normal(5, 4, 3)
        with pytest.raises(ValueError, match="state_batch_indices points at state 7, expected less than 5"):
            selective_state_update(state, u, u, normal(4, 3), normal(2, 3), normal(2, 3),
                                   state_batch_indices=torch.tensor([7, 0]))  # fmt: skip
        with pytest.raises(ValueError, match="state_batch_indices has dtype float32, expected integers"):
            selective_state_update(state, u, u, normal(4, 3), normal(2, 3), normal(2, 3),
                                   state_batch_indices=torch.tensor([1.0, 0.0]))  # fmt: skip
        with pytest.raises(ValueError, match="conv_state_indices points at state 9, expected less than 5"):
            causal_conv1d_update(u, state, normal(4, 4), conv_state_indices=torch.tensor([9, 0], dtype=torch.int32))

    def test_devices(self):
        u, delta, A, B, C, *_ = scan_arguments()
        with pytest.raises(ValueError, match="A is on meta, but u is on cpu"):
            selective_scan_fn(u, delta, A.to("meta"), B, C)
        with pytest.raises(ValueError, match="conv_state is on meta, but x is on cpu"):
            causal_conv1d_update(u[..., 0], torch.zeros(2, 4, 4, device="meta"), normal(4, 4))

    def test_choices(self):
        u = normal(2, 3, 5)
        with pytest.raises(ValueError, match="activation='relu'"):
            causal_conv1d_fn(u, normal(3, 4), activation="relu")
        with pytest.raises(ValueError, match="seq_idx has shape .* expected integers"):
            causal_conv1d_fn(u, normal(3, 4), seq_idx=torch.zeros(2, 4, dtype=torch.int32))
        with pytest.raises(ValueError, match="holds 2 inputs, expected w - 1 = 3"):
            causal_conv1d_update(u, normal(2, 3, 2), normal(3, 4))

    def test_offsets_beyond_32_bits(self):
        """Items that lie 2^31 elements apart: only the pages that are touched become memory."""
        far = torch.empty(2**31 + 64, dtype=torch.float32)
        near = normal(2, 4, 7, dtype=torch.float32)
        u = far.as_strided((2, 4, 7), (2**31, 1, 4)).copy_(near)
        given = [t.float() for t in scan_arguments()]
        torch.testing.assert_close(selective_scan_fn(u, *given[1:], True), selective_scan_fn(near, *given[1:], True))
