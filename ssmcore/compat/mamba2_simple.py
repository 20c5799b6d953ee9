"""mamba_ssm's Mamba2Simple: Mamba-2 for training alone, with a first state that can be learnt."""

import torch
from torch import Tensor, nn

from .mamba2 import Mamba2


class Mamba2Simple(Mamba2):
    """The Mamba-2 block without states to carry on, (b, l, d_model) to (b, l, d_model).

    Raises:
        ValueError: headdim does not divide the inner channels, or ngroups the heads.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        learnable_init_states: bool = False,
        activation: str = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if activation not in ("silu", "swish"):
            raise ValueError(f"Mamba2Simple: activation={activation!r}, expected 'silu' or 'swish'")
        super().__init__(
            d_model, d_state, d_conv, conv_init, expand, headdim, ngroups=ngroups, A_init_range=A_init_range,
            dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor, dt_limit=dt_limit, bias=bias,
            conv_bias=conv_bias, chunk_size=chunk_size, use_mem_eff_path=use_mem_eff_path, layer_idx=layer_idx,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.learnable_init_states = learnable_init_states
        if learnable_init_states:
            shape = (self.nheads, headdim, d_state)
            self.init_states = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
            setattr(self.init_states, "_no_weight_decay", True)  # noqa: B010

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Mix a sequence, (b, l, d_model) to the same.

        Args:
            u: Shape (b, l, d_model).
            seq_idx: The packed sequence that each token is of, shape (b, l); only an item's first has the learnt state.
        Raises:
            ValueError: A shape disagrees.
        """
        first = self.init_states.expand(u.shape[0], -1, -1, -1) if self.learnable_init_states else None
        return self._whole(self.in_proj(u), seq_idx, first)[0]
