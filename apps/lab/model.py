"""The smallest model around a mixer: embedding, layers, a linear map to answers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ssmcore import Stack, Unsupported


class LabModel(nn.Module):
    """Tokens (b, l) or vectors (b, l, n) to answers (b, l, classes), or numbers (b, l) where there are no classes.

    Args:
        tokens: Kinds of tokens, or width of the vectors.
        classes: Kinds of answers; 0 for a number.
        mixer: Registered name.
        options: Of the mixer.
        d_model: Width.
        num_layers: Layers.
        channel_mixer: Registered name, or None.
        embed_dropout: Rate behind the embedding.
    Raises:
        ValueError: A name or option is unknown.
        Unsupported: The mixer looks ahead.
    """

    def __init__(
        self,
        tokens: int,
        classes: int,
        mixer: str,
        options: Mapping[str, Any],
        *,
        d_model: int,
        num_layers: int,
        channel_mixer: str | None = None,
        embed_dropout: float = 0.0,
    ):
        super().__init__()
        self.classes = classes
        self.embed = nn.Embedding(tokens, d_model) if classes else nn.Linear(tokens, d_model)
        self.dropout = nn.Dropout(embed_dropout)
        branch = "M" if channel_mixer is None else f"M/{channel_mixer}"
        spec = {"name": mixer, **options}
        self.stack = Stack(d_model, f"({branch})*{num_layers}", mixers={"M": spec}, norm="layer")
        if not self.stack.causal:
            raise Unsupported(f"LabModel: {mixer} looks ahead, expected a causal mixer: answers follow their questions")
        self.head = nn.Linear(d_model, classes or 1)

    def forward(self, x: Tensor) -> Tensor:
        """Answers at every position; shapes above."""
        y, _ = self.stack(self.dropout(self.embed(x)))
        y = self.head(y)
        return y if self.classes else y[..., 0]
