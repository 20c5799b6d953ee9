"""mamba_ssm's Mamba2 module: the parameters, arguments, states and attributes that its users know.

    z, (x, B, C), dt = in_proj u;   x, B, C = silu(conv1d (x, B, C));   dt = softplus(dt + dt_bias)
    S[t] = exp(dt[t] A) S[t-1] + B[t] (dt[t] x[t])^T,   out = out_proj norm((S[t]^T C[t] + D x[t]) silu(z[t]))

For new work there is `ssmcore.create_mixer("mamba2", ...)`. Source: Dao & Gu 2024, Transformers are SSMs, sec. 7.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import at_least_float32
from ..steps import inverse_softplus, log_uniform
from .conv import causal_conv1d_update, causal_conv1d_varlen_states
from .inference import CachesStates, InferenceParams
from .norm import RMSNormGated
from .scan import selective_state_update
from .ssd import mamba_split_conv1d_scan_combined


class Mamba2(CachesStates, nn.Module):
    """The Mamba-2 block, (b, l, d_model) to (b, l, d_model); h heads of width headdim, d_ssm channels in all.

    Raises:
        ValueError: headdim does not divide d_ssm, ngroups not the heads, or a process group is given.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: object = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if process_group is not None:
            raise ValueError("Mamba2: process_group (tensor parallelism) is not offered, expected None")
        made = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.headdim, self.ngroups, self.nheads = headdim, ngroups, self.d_ssm // headdim
        if self.d_ssm % headdim or self.nheads % ngroups:
            raise ValueError(f"Mamba2: {self.d_ssm} channels, heads of {headdim} and {ngroups} groups do not divide")
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit, self.chunk_size, self.layer_idx = dt_limit, chunk_size, layer_idx
        self.activation, self.act, self.use_mem_eff_path = "silu", nn.SiLU(), use_mem_eff_path
        self.d_shared = ngroups * d_state
        self.d_mlp, conv_dim = self.d_inner - self.d_ssm, self.d_ssm + 2 * self.d_shared
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * self.d_shared + self.nheads, bias=bias, **made)
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, d_conv, groups=conv_dim, padding=d_conv - 1, bias=conv_bias, **made)
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        steps = log_uniform(self.nheads, dt_min, dt_max).clamp(min=dt_init_floor)
        self.dt_bias = nn.Parameter(inverse_softplus(steps).to(**made))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(*A_init_range).log().to(**made))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        if rmsnorm:
            self.norm = RMSNormGated(self.d_ssm, 1e-5, self.d_ssm // ngroups, norm_before_gate, **made)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)
        for parameter in (self.dt_bias, self.A_log, self.D):  # what upstream's optimiser groups look for
            setattr(parameter, "_no_weight_decay", True)  # noqa: B010

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: InferenceParams | None = None,
    ) -> Tensor:
        """Mix a sequence, shape of u to the same.

        Args:
            u: Shape (b, l, d_model); or, with `seqlen`, (b l, d_model).
            seqlen: l.
            seq_idx: The packed sequence that each token is of, shape (b, l).
            cu_seqlens: The same as bounds, shape (r + 1,), for b = 1.
            inference_params: The running state of a generation. The first call takes a prompt, later ones a token.
        Raises:
            ValueError: A shape disagrees, a later call brings several tokens, or the module has no layer_idx.
        """
        x = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if inference_params is None:
            if seq_idx is None and cu_seqlens is not None:
                seq_idx = _index(cu_seqlens)
            y, _ = self._whole(self.in_proj(x), seq_idx)
        elif seq_idx is None:
            y = self._with_states(x, cu_seqlens, inference_params)
        else:
            raise ValueError("Mamba2: with inference_params packed sequences are given by cu_seqlens, not by seq_idx")
        return y if seqlen is None else y.flatten(0, 1)

    def _with_states(self, x: Tensor, cu_seqlens: Tensor | None, inference_params: InferenceParams) -> Tensor:
        """A prompt, or with `cu_seqlens` several, whose states are then a batch; or a token."""
        rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        conv_state, ssm_state = self._get_states_from_cache(inference_params, rows)
        if inference_params.seqlen_offset > 0:
            return self.step(x, conv_state, ssm_state)[0]
        zxbcdt = self.in_proj(x)
        u = self._split(zxbcdt)[3]
        if cu_seqlens is None:
            conv_state.copy_(F.pad(u.transpose(1, 2), (self.d_conv - u.shape[1], 0)))
            y, last = self._whole(zxbcdt, None)
            ssm_state.copy_(last)
            return y
        if x.shape[0] != 1:
            raise ValueError(f"Mamba2: cu_seqlens needs one packed row, (1, l, d_model), got u of {x.shape[0]} rows")
        conv_state.copy_(causal_conv1d_varlen_states(u[0], cu_seqlens, self.d_conv))
        outputs = []
        for i, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
            y, last = self._whole(zxbcdt[:, start:stop], None)
            ssm_state[i : i + 1].copy_(last)
            outputs.append(y)
        return torch.cat(outputs, 1)

    def _whole(self, zxbcdt: Tensor, seq_idx: Tensor | None, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, (b, l, d_model), and the last state, shape of `first`, (b, h, headdim, d_state)."""
        y, last = mamba_split_conv1d_scan_combined(
            zxbcdt,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            self.dt_bias,
            self._A(),
            self._D(),
            self.chunk_size,
            initial_states=first,
            seq_idx=seq_idx,
            dt_limit=self.dt_limit,
            return_final_states=True,
            rmsnorm_weight=self.norm.weight if self.rmsnorm else None,
            rmsnorm_eps=self.norm.eps if self.rmsnorm else 1e-6,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=self.norm_before_gate,
        )
        return y, last

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix one token, both states written in place. Not differentiable.

        Args:
            hidden_states: Shape (b, 1, d_model).
            conv_state: Shape (b, d_ssm + 2 ngroups d_state, d_conv).
            ssm_state: Shape (b, h, headdim, d_state).
        Returns:
            The output, shape (b, 1, d_model), and the two states.
        Raises:
            ValueError: There is not exactly one token, or a shape disagrees.
        """
        if hidden_states.shape[1] != 1:
            raise ValueError(f"Mamba2: hidden_states {tuple(hidden_states.shape)}, expected one token, (b, 1, d_model)")
        gate0, side0, z, u, dt = self._split(self.in_proj(hidden_states[:, 0]))
        u = causal_conv1d_update(u, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        u, B, C = u.split([self.d_ssm, self.d_shared, self.d_shared], dim=1)
        dt = F.softplus(at_least_float32(dt) + self.dt_bias).clamp(*self.dt_limit)
        p = self.headdim
        D = self._D() if self.D_has_hdim else self._D()[:, None].expand(-1, p)
        A = self._A()[:, None, None].expand(-1, p, self.d_state)
        B, C = (M.unflatten(1, (self.ngroups, -1)) for M in (B, C))
        u, gate = u.unflatten(1, (-1, p)), None if self.rmsnorm else z.unflatten(1, (-1, p))
        y = selective_state_update(ssm_state, u, dt[..., None].expand(-1, -1, p), A, B, C, D, gate)
        y = self.norm(y.flatten(1), z) if self.rmsnorm else y.flatten(1)
        y = torch.cat([F.silu(gate0) * side0, y], 1) if self.d_mlp else y
        return self.out_proj(y.to(self.out_proj.weight.dtype))[:, None], conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype=None, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Zeros: the convolution's state (b, c, d_conv) and the scan's (b, h, headdim, d_state).

        Raises nothing; max_seqlen and what comes after dtype are not used, as upstream.
        """
        conv, first = self.conv1d.weight, self.in_proj.weight
        shape = (batch_size, self.nheads, self.headdim, self.d_state)
        return (
            torch.zeros(batch_size, conv.shape[0], self.d_conv, device=conv.device, dtype=dtype or conv.dtype),
            torch.zeros(shape, device=first.device, dtype=dtype or first.dtype),
        )

    def _A(self) -> Tensor:
        return -at_least_float32(self.A_log).exp()

    def _D(self) -> Tensor:
        return self.D.unflatten(0, (-1, self.headdim)) if self.D_has_hdim else self.D

    def _split(self, zxbcdt: Tensor) -> tuple[Tensor, ...]:
        widths = [self.d_mlp, self.d_mlp, self.d_ssm, self.conv1d.weight.shape[0], self.nheads]
        return zxbcdt.split(widths, dim=-1)


def _index(cu_seqlens: Tensor) -> Tensor:
    """The sequence of each token, shape (1, l), of bounds (r + 1,)."""
    lengths = torch.diff(cu_seqlens.long())
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)[None]
