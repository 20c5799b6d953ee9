"""mamba_ssm's Mamba module: the parameters, arguments, states and attributes that its users know.

    u, z = in_proj x;   u = silu(conv1d u);   dt, B, C = x_proj u
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t],   out = out_proj((C[t] . h[t] + D u[t]) silu(z[t]))

For new work there is `ssmcore.create_mixer("mamba", ...)`, with resets, packed rows and a functional state.
Source: Gu & Dao 2023, Mamba, sec. 3.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import at_least_float32
from ..steps import inverse_softplus, log_uniform
from .conv import causal_conv1d_fn, causal_conv1d_update
from .inference import CachesStates, InferenceParams
from .scan import mamba_inner_fn, selective_scan_fn, selective_state_update


class Mamba(CachesStates, nn.Module):
    """The Mamba block, (b, l, d_model) to (b, l, d_model).

    Raises:
        ValueError: dt_init is unknown.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise ValueError(f"Mamba: dt_init={dt_init!r}, expected 'random' or 'constant'")
        made = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = d = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.in_proj = nn.Linear(d_model, 2 * d, bias=bias, **made)
        self.conv1d = nn.Conv1d(d, d, d_conv, groups=d, padding=d_conv - 1, bias=conv_bias, **made)
        self.activation, self.act = "silu", nn.SiLU()
        self.x_proj = nn.Linear(d, self.dt_rank + 2 * d_state, bias=False, **made)
        self.dt_proj = nn.Linear(self.dt_rank, d, bias=True, **made)
        std = dt_scale * self.dt_rank**-0.5
        with torch.no_grad():
            self.dt_proj.weight.fill_(std) if dt_init == "constant" else self.dt_proj.weight.uniform_(-std, std)
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform(d, dt_min, dt_max).clamp(min=dt_init_floor)))
        # Poles and skip stay in float32 whatever the dtype of the rest.
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1, device=device).log().repeat(d, 1))
        self.D = nn.Parameter(torch.ones(d, device=device))
        self.out_proj = nn.Linear(d, d_model, bias=bias, **made)
        for parameter in (self.A_log, self.D):  # what upstream's optimiser groups look for
            setattr(parameter, "_no_weight_decay", True)  # noqa: B010
        setattr(self.dt_proj.bias, "_no_reinit", True)  # noqa: B010

    def forward(self, hidden_states: Tensor, inference_params: InferenceParams | None = None) -> Tensor:
        """Mix a sequence, (b, l, d_model) to the same.

        Args:
            hidden_states: Shape (b, l, d_model).
            inference_params: The running state of a generation. The first call takes a prompt, later ones a token.
        Raises:
            ValueError: A shape disagrees, a later call brings several tokens, or the module has no layer_idx.
        """
        conv_state = ssm_state = None
        if inference_params is not None:
            conv_state, ssm_state = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, conv_state, ssm_state)[0]
        xz, A = self.in_proj(hidden_states).transpose(1, 2), -at_least_float32(self.A_log).exp()
        if ssm_state is None or conv_state is None:
            return mamba_inner_fn(
                xz, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
                self.out_proj.weight, self.out_proj.bias, A, D=self.D, delta_bias=self.dt_proj.bias,
            )  # fmt: skip
        u, z = xz.chunk(2, dim=1)
        conv_state.copy_(F.pad(u, (self.d_conv - u.shape[2], 0)))
        u = causal_conv1d_fn(u, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu")
        assert isinstance(u, Tensor)
        dt, B, C = (t.transpose(1, 2) for t in self._project(u.transpose(1, 2)))
        y, last = selective_scan_fn(u, dt, A, B, C, self.D, z, self.dt_proj.bias, True, return_last_state=True)
        ssm_state.copy_(last)
        return self.out_proj(y.transpose(1, 2))

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step before its bias, B and C, each (..., channels)."""
        low_rank, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(low_rank, self.dt_proj.weight), B, C

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix one token, both states written in place. Not differentiable.

        Args:
            hidden_states: Shape (b, 1, d_model).
            conv_state: Shape (b, d, d_conv).
            ssm_state: Shape (b, d, d_state).
        Returns:
            The output, shape (b, 1, d_model), and the two states.
        Raises:
            ValueError: There is not exactly one token, or a shape disagrees.
        """
        if hidden_states.shape[1] != 1:
            raise ValueError(f"Mamba: hidden_states {tuple(hidden_states.shape)}, expected one token, (b, 1, d_model)")
        u, z = self.in_proj(hidden_states[:, 0]).chunk(2, dim=-1)
        u = causal_conv1d_update(u, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        dt, B, C = self._project(u)
        A = -at_least_float32(self.A_log).exp()
        y = selective_state_update(ssm_state, u, dt, A, B, C, self.D, z, self.dt_proj.bias, dt_softplus=True)
        return self.out_proj(y)[:, None], conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype=None, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Zeros: the convolution's state (b, d, d_conv) and the scan's (b, d, d_state).

        Raises nothing; max_seqlen and what comes after dtype are not used, as upstream.
        """
        conv, dt = self.conv1d.weight, self.dt_proj.weight
        return (
            torch.zeros(batch_size, self.d_inner, self.d_conv, device=conv.device, dtype=dtype or conv.dtype),
            torch.zeros(batch_size, self.d_inner, self.d_state, device=dt.device, dtype=dtype or dt.dtype),
        )
