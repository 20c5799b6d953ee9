"""causal_conv1d's functions: a short depthwise convolution over the past, channel-first.

    y[:, :, t] = act(bias + sum_j weight[:, j] x[:, :, t - w + 1 + j])

b batch, d channels, l length, w width; any width, unlike there.
"""

import torch
import torch.nn.functional as F
from ssm_kernels.checks import FLOATS, Shapes, check_devices, check_dtype
from torch import Tensor

from ..functional import at_least_float32, causal_conv1d
from .rows import check_slots, rows_of_index


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve whole sequences.

    Args:
        x: Input, shape (b, d, l), any strides.
        weight: Shape (d, w).
        bias: Shape (d,).
        seq_idx: The packed sequence that each token is of, shape (b, l); sequences do not see each other.
        initial_states: The w - 1 inputs before the first, shape (b, d, w - 1).
        return_final_states: Also return the last w - 1 inputs.
        final_states_out: Written with them, shape (b, d, w - 1).
        activation: None, "silu" or "swish".
    Returns:
        y, shape (b, d, l), dtype of x; with `return_final_states` also the last inputs, shape (b, d, w - 1).
    Raises:
        ValueError: A shape, dtype, device or the activation is wrong, or seq_idx is given with states.
    """
    op = "causal_conv1d_fn"
    shapes = _check(op, {"x": x, "weight": weight, "bias": bias, "initial_states": initial_states}, "b d l")
    silu = _is_silu(op, activation)
    steps = x.transpose(1, 2)
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ValueError(f"{op}: seq_idx cannot go with initial_states or return_final_states, as upstream")
        rows = rows_of_index(op, seq_idx, x.shape[0], x.shape[2])
        y = causal_conv1d(rows.pack(steps), weight, bias, activation=silu, cu_seqlens=rows.cu_seqlens)
        assert isinstance(y, Tensor)
        return rows.unpack(y).transpose(1, 2)
    state = None if initial_states is None else initial_states.transpose(1, 2)
    y, last = causal_conv1d(steps, weight, bias, activation=silu, initial_state=state, return_last_state=True)
    y, last = y.transpose(1, 2), last.transpose(1, 2).to(x.dtype)
    if final_states_out is not None:
        shapes.check("final_states_out", final_states_out, "b d v")
        with torch.no_grad():
            last = final_states_out.copy_(last)
    return (y, last) if return_final_states else y


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`causal_conv1d_fn` with its arguments in the order of upstream's reference; shape (b, d, l), raises as that."""
    given = (initial_states, return_final_states, final_states_out, activation)
    return causal_conv1d_fn(x, weight, bias, seq_idx, *given)


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next tokens, and write the state in place. Not differentiable, as upstream.

    Args:
        x: The next token, shape (b, d), or the next l of them, shape (b, d, l).
        conv_state: The last inputs, oldest first, shape (b, d, v) with v at least w - 1; or (slots, d, v).
        weight: Shape (d, w).
        bias: Shape (d,).
        activation: None, "silu" or "swish".
        cache_seqlens: Tokens that came before, int, shape (b,): the state is then a ring, written from there on.
        conv_state_indices: The slot of each item, int, shape (b,); a negative one gives zeros and writes nothing.
    Returns:
        y, shape and dtype of x.
    Raises:
        ValueError: A shape, dtype, device or the activation is wrong.
    """
    op, steps = "causal_conv1d_update", x[..., None] if isinstance(x, Tensor) and x.ndim == 2 else x
    tensors = {"x": steps, "weight": weight, "bias": bias, "conv_state": conv_state}
    shapes = _check(op, tensors, "b d l", slots=conv_state_indices is not None)
    silu = _is_silu(op, activation)
    for name, t in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if t is not None:
            shapes.check(name, t, "b")
    if conv_state_indices is not None:
        check_slots(op, "conv_state_indices", conv_state_indices, conv_state.shape[0])
        real = conv_state_indices >= 0
        slots, own = conv_state_indices[real].long(), None if cache_seqlens is None else cache_seqlens[real]
        state, y = conv_state[slots], torch.zeros_like(steps)
        y[real] = causal_conv1d_update(steps[real], state, weight, bias, activation, own)
        conv_state[slots] = state
        return y if x.ndim == 3 else y[..., 0]
    l, w, v = steps.shape[2], weight.shape[1], conv_state.shape[2]
    new = steps.to(conv_state.dtype)
    if cache_seqlens is None:
        seen = torch.cat([conv_state, new], 2)
        conv_state.copy_(seen[:, :, seen.shape[2] - v :])
    else:
        past = (cache_seqlens[:, None] + torch.arange(1 - w, l, device=x.device)) % v
        places = past[:, None].expand(-1, conv_state.shape[1], -1)
        seen = torch.cat([conv_state.gather(2, places[..., : w - 1]), new], 2)
        conv_state.scatter_(2, places[..., w - 1 :][..., -v:], new[..., -v:])
    seen = at_least_float32(seen[:, :, seen.shape[2] - l - w + 1 :])
    if l == 1:
        y = (seen * weight).sum(2, keepdim=True)
        y = y if bias is None else y + bias[:, None]
    else:
        wide = None if bias is None else bias.to(seen.dtype)
        y = F.conv1d(seen, weight[:, None].to(seen.dtype), wide, groups=weight.shape[0])
    y = (F.silu(y) if silu else y).to(x.dtype)
    return y if x.ndim == 3 else y[..., 0]


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last inputs of packed sequences, zeros to the left where one is shorter.

    Args:
        x: Inputs, shape (l, d), all sequences one after the other.
        cu_seqlens: Their bounds, shape (r + 1,).
        state_len: v.
    Returns:
        Shape (r, d, v).
    Raises:
        ValueError: A shape is wrong.
    """
    shapes = Shapes("causal_conv1d_varlen_states")
    shapes.check("x", x, "l d")
    shapes.check("cu_seqlens", cu_seqlens, "r")
    bounds = cu_seqlens.long()
    places = bounds[1:, None] + torch.arange(-state_len, 0, device=x.device)
    inside = places >= bounds[:-1, None]
    return (x[places.clamp(min=0)] * inside[..., None]).transpose(1, 2)


def _check(op: str, tensors: dict[str, Tensor | None], spec: str, slots: bool = False) -> Shapes:
    shapes = Shapes(op)
    specs = {"x": spec, "weight": "d w", "bias": "d", "initial_states": "b d v", "conv_state": "b d v"}
    for name, t in tensors.items():
        if t is not None:
            shapes.check(name, t, "s d v" if slots and name == "conv_state" else specs[name])
            check_dtype(op, name, t, FLOATS)
    check_devices(op, tensors)
    w, v = shapes.sizes["w"], shapes.sizes.get("v")
    if v is not None and (v < w - 1 or ("initial_states" in tensors and v != w - 1)):
        raise ValueError(f"{op}: the state holds {v} inputs, expected w - 1 = {w - 1}")
    return shapes


def _is_silu(op: str, activation: str | None) -> str | None:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{op}: activation={activation!r}, expected None, 'silu' or 'swish'")
    return None if activation is None else "silu"
