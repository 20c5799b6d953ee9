"""SaShiMi: the next sample of a raw waveform, from all samples before it.

    logits[t] = head norm backbone( embedding[tokens[t]] + labels ),   p(tokens[t+1] | tokens[..t]) = softmax logits[t]

A clip starts with the level of silence, which is fed but not predicted. `forward` takes any number of tokens from any
state: a whole clip by convolution, a chunk, or one token (`step`), with one answer.
Source: Goel et al. 2022, It's raw! Audio generation with state-space models; Gu & Dao 2023, Mamba, sec. 4.4.

    b  batch      l  samples      d  d_model      k  labels of a clip
"""

import torch
from ssm_kernels.checks import Shapes, check_dtype
from torch import Tensor, nn

from ssmcore.array_types import Float, Int
from ssmcore.blocks import LayerNorm
from ssmcore.mixer import Context
from ssmcore.state import State, batch_size

from ..config import SaShiMiConfig
from .backbone import backbone

UNKNOWN = -1
"""A label that is not given; it adds nothing."""


class SaShiMi(nn.Module):
    """Autoregressive model of quantised waveforms, tokens (b, l) to logits (b, l, levels).

    Raises:
        ValueError: The configuration names an unknown mixer or option.
        Unsupported: A mixer is not causal.
    """

    def __init__(self, config: SaShiMiConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.levels, config.d_model)
        self.label_embeddings = nn.ModuleList(nn.Embedding(count, sum(config.widths)) for count in config.labels)
        for table in self.label_embeddings:
            nn.init.normal_(table.weight, std=0.1)
        self.backbone = backbone(config)
        self.norm = LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.levels)

    def init_state(self, batch: int, *, label: Int[Tensor, "b k"] | None = None) -> State:
        """The state before any sample.

        Args:
            batch: Number of clips, b.
            label: Labels of each clip, shape (b, k), or (b,) where there is one kind; -1 or None is unknown.
        Returns:
            Tensors (b, ...): those of the backbone, and `label` (b, k).
        Raises:
            ValueError: label does not fit the configuration.
        """
        device = self.head.weight.device
        return {
            "label": self._labels(batch, label, device),
            "backbone": self.backbone.init_state(batch, self._stream(batch, device)),
        }

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        state: State | None = None,
        *,
        label: Int[Tensor, "b k"] | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l levels"], State | None]:
        """Logits of the sample that follows each token.

        Args:
            tokens: Levels of consecutive samples, int64, shape (b, l).
            state: What an earlier call left behind; None starts a clip.
            label: Labels of each clip, shape (b, k), or (b,) where there is one kind. A state brings its own.
            return_state: Return the new state even if none was given.
        Returns:
            logits, shape (b, l, levels); and the new state, or None when neither `state` nor `return_state` was given.
        Raises:
            ValueError: A shape, dtype, level, label or batch size does not fit; or both state and label are given.
        """
        self._check(tokens, state, label)
        keep = return_state or state is not None
        b = tokens.shape[0]
        labels = self._labels(b, label, tokens.device) if state is None else state["label"]
        if tokens.shape[1] == 0:
            return self.head.weight.new_zeros(b, 0, self.config.levels), (
                state if state is not None or not keep else self.init_state(b, label=label)
            )
        return self.advance(tokens, state, labels, keep)

    def advance(
        self, tokens: Int[Tensor, "b l"], state: State | None, labels: Int[Tensor, "b k"], keep: bool = True
    ) -> tuple[Float[Tensor, "b l levels"], State | None]:
        """`forward` without its checks, which wait for the device: for l >= 1 tokens (b, l) that are known to fit.

        Args:
            tokens: As `forward`, shape (b, l).
            state: As `forward`.
            labels: Labels of each clip, int64, shape (b, k), -1 where unknown.
            keep: Whether the new state is wanted.
        Returns:
            As `forward`, shape (b, l, levels).
        """
        x, before = self.embedding(tokens), None if state is None else state["backbone"]
        x = x.to(self._stream(len(tokens), x.device).dtype)
        y, left = self.backbone(x, before, Context(return_state=keep), self.biases(labels))
        return self.head(self.norm(y)), {"label": labels, "backbone": left} if keep else None

    def step(self, tokens: Int[Tensor, "b"], state: State) -> tuple[Float[Tensor, "b levels"], State]:
        """Logits after one more sample: `forward` on a sequence of length 1.

        Args:
            tokens: The newest level of each clip, shape (b,).
            state: What came before; `init_state` at the start.
        Returns:
            logits, shape (b, levels), and the new state.
        Raises:
            ValueError: As `forward`.
        """
        logits, new = self(tokens[:, None], state)
        assert new is not None
        return logits[:, 0], new

    def biases(self, labels: Int[Tensor, "b k"]) -> list[Float[Tensor, "b 1 d"]]:
        """What the labels (b, k) add to the tokens that enter each tier, a (b, 1, width) each. Raises nothing."""
        if not self.config.labels:
            return []
        known = (labels != UNKNOWN)[..., None]
        vectors = [table(column) for table, column in zip(self.label_embeddings, labels.clamp(min=0).T, strict=True)]
        total = torch.stack([torch.where(k, v, 0) for k, v in zip(known.unbind(1), vectors, strict=True)]).sum(0)
        return [part[:, None] for part in total.split(self.config.widths, -1)]

    def _stream(self, batch: int, device: torch.device) -> Tensor:
        """An empty tensor of the stream's type: float32, or float64 where the weights are."""
        dtype = torch.promote_types(self.head.weight.dtype, torch.float32)
        return torch.empty(batch, 0, self.config.d_model, dtype=dtype, device=device)

    def _labels(self, batch: int, label: Tensor | None, device: torch.device) -> Int[Tensor, "b k"]:
        """Labels as (b, k), checked."""
        kinds = len(self.config.labels)
        if label is None:
            return torch.full((batch, kinds), UNKNOWN, dtype=torch.int64, device=device)
        label = label[:, None] if label.ndim == 1 else label
        if label.shape != (batch, kinds) or label.is_floating_point():
            raise ValueError(
                f"SaShiMi: label is {label.dtype} {tuple(label.shape)}, expected int64 (b, {kinds}) with b={batch}: "
                f"the model has {kinds} kinds of labels"
            )
        for column, count in zip(label.T, self.config.labels, strict=True):
            if column.numel() and not -1 <= int(column.min()) <= int(column.max()) < count:
                raise ValueError(
                    f"SaShiMi: label from {int(column.min())} to {int(column.max())}, expected 0 to {count - 1}, or -1"
                )
        return label.to(device=device, dtype=torch.int64)

    def _check(self, tokens: Tensor, state: State | None, label: Tensor | None) -> None:
        Shapes("SaShiMi").check("tokens", tokens, "b l")
        check_dtype("SaShiMi", "tokens", tokens, (torch.int64,))
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.levels:
            came = f"{int(tokens.min())} to {int(tokens.max())}"
            raise ValueError(f"SaShiMi: tokens from {came}, expected 0 to {self.config.levels - 1}")
        if state is None:
            return
        if label is not None:
            raise ValueError("SaShiMi: label and state are both given, expected one: the state holds its clip's labels")
        if (b := batch_size(state)) != tokens.shape[0]:
            raise ValueError(f"SaShiMi: state has batch size {b}, expected b={tokens.shape[0]} from tokens")
