"""A causal stack on bytes, with one matrix for embedding and answers, and how it is measured and continued."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmcore import Stack
from ssmcore.state import State

BYTES = 256
STREAMS = 8
"""Parts of a text that are measured side by side."""


class ByteModel(nn.Module):
    """Bytes (b, l) to the logits of the byte after each, (b, l, 256).

    Args:
        mixer: Registered name of a causal mixer with a state.
        options: Of the mixer.
        d_model: Width.
        num_layers: Layers.
        channel_mixer: Registered name, or None.
    Raises:
        ValueError: A name or option is unknown.
        Unsupported: The mixer looks ahead, or has no state.
    """

    def __init__(
        self,
        mixer: str,
        options: Mapping[str, Any],
        *,
        d_model: int,
        num_layers: int,
        channel_mixer: str | None = None,
    ):
        super().__init__()
        self.embed = nn.Embedding(BYTES, d_model)
        nn.init.normal_(self.embed.weight, std=0.02)
        layer = "M" if channel_mixer is None else f"M/{channel_mixer}"
        spec = {"name": mixer, **options}
        self.stack = Stack(d_model, f"({layer})*{num_layers}", mixers={"M": spec}, causal=True)

    def forward(self, x: Tensor, state: State | None = None, return_state: bool = False) -> tuple[Tensor, State | None]:
        """Logits (b, l, 256) and the state after the last byte. Raises nothing of its own."""
        y, state = self.stack(self.embed(x), state, return_state=return_state)
        return F.linear(y, self.embed.weight), state


@torch.no_grad()
def bits_per_byte(model: ByteModel, data: np.ndarray, chunk: int = 1024) -> float:
    """Mean of -log2 p over a text, each byte given all before it in its eighth of the text.

    Args:
        model: In evaluation mode.
        data: Bytes, uint8, shape (n,), n > 8.
        chunk: Bytes of each eighth that are read at once; changes memory, not the result.
    """
    device = next(model.parameters()).device
    size = (len(data) - 1) // STREAMS
    streams = torch.from_numpy(data[: size * STREAMS + 1].astype(np.int64)).to(device)
    x, following = streams[:-1].view(STREAMS, size), streams[1:].view(STREAMS, size)
    state, nats = None, 0.0
    for at in range(0, size, chunk):
        logits, state = model(x[:, at : at + chunk], state, return_state=True)
        answers = following[:, at : at + chunk]
        nats += F.cross_entropy(logits.flatten(0, 1).float(), answers.flatten(), reduction="sum").item()
    return nats / (size * STREAMS) / float(np.log(2))


@torch.no_grad()
def continued(
    model: ByteModel,
    prompt: bytes,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Bytes that go on with a prompt, for ever: the state is all that is kept.

    Args:
        model: In evaluation mode.
        prompt: At least one byte.
        temperature: 0 takes the likeliest.
        top_p: Draw among the likeliest bytes that have this probability together.
        generator: Of the draws.
    Yields:
        One byte after the other. No shapes.
    Raises:
        ValueError: The prompt is empty, temperature is below 0, or top_p is not in (0, 1].
    """
    if not prompt or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"continued: a prompt of {len(prompt)} bytes, temperature={temperature}, top_p={top_p}; expected at least "
            "1 byte, a temperature of at least 0 and top_p in (0, 1]"
        )
    device = next(model.parameters()).device
    x = torch.tensor([list(prompt)], device=device)
    logits, state = model(x, return_state=True)
    last = logits[:, -1]
    while True:
        byte = _drawn(last[0].float().cpu(), temperature, top_p, generator)
        yield byte
        y, state = model.stack.step(model.embed(torch.tensor([byte], device=device)), state)
        last = F.linear(y, model.embed.weight)


def _drawn(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits.argmax())
    ranked, order = (logits / temperature).softmax(-1).sort(descending=True)
    ranked[ranked.cumsum(-1) - ranked >= top_p] = 0
    return int(order[torch.multinomial(ranked, 1, generator=generator)])
