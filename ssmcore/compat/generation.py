"""How mamba_ssm's language models write: prompt, states, one token after the other, drawn by top-k, top-p or min-p."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .inference import InferenceParams


@dataclass
class Generated:
    """What `decode` returns; transformers' class of the same use has these two fields as well."""

    sequences: Tensor
    """Prompt and new tokens, shape (b, length)."""
    scores: tuple[Tensor, ...] | None = None
    """The logits that each new token was drawn from, shape (b, vocabulary)."""


def sample(logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Draw a token for each row.

    Args:
        logits: Shape (b, vocabulary).
        top_k: Draw among so many of the likeliest; 1 takes the likeliest, 0 is all.
        top_p: Draw among the likeliest that together have this probability; 0 or 1 is all.
        min_p: Leave out what is less likely than this share of the likeliest; 0 is nothing.
        temperature: Divides the logits.
    Returns:
        Tokens, shape (b,).
    Raises:
        ValueError: top_p or min_p is not in 0 to 1.
    """
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if not 0 <= value <= 1:
            raise ValueError(f"sample: {name}={value}, expected 0 to 1")
    if top_k == 1:
        return logits.argmax(dim=-1)
    tokens = None
    if top_k > 0:
        logits, tokens = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    chances = (logits.float() / temperature).softmax(dim=-1)
    if min_p > 0:
        chances = chances * (chances >= min_p * chances.amax(dim=-1, keepdim=True))
    if 0 < top_p < 1:
        down, order = chances.sort(dim=-1, descending=True)
        late = down.cumsum(dim=-1) - down >= top_p * down.sum(dim=-1, keepdim=True)
        chances = chances.masked_fill(late.scatter(-1, order, late), 0)
    drawn = torch.multinomial(chances, 1)
    return (drawn if tokens is None else tokens.gather(-1, drawn))[..., 0]


def penalise_repetition(logits: Tensor, before: Tensor, penalty: float) -> Tensor:
    """Logits (b, vocabulary) with those of the tokens before, (b, l), made less likely. Raises nothing.

    Source: Keskar et al. 2019, CTRL, sec. 4.1.
    """
    own = logits.gather(-1, before)
    return logits.scatter(-1, before, torch.where(own < 0, own * penalty, own / penalty))


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> Generated:
    """Continue prompts of one length.

    Args:
        input_ids: Prompts, shape (b, l).
        model: Gives `.logits` (b, 1, vocabulary) of tokens and InferenceParams.
        max_length: Tokens at most, the prompt included.
        top_k, top_p, min_p, temperature: As in `sample`.
        repetition_penalty: Of the prompt's tokens too; 1 is none.
        eos_token_id: Stop where all rows have just written it.
        teacher_outputs: Tokens, shape (b, steps), that are taken in place of drawn ones, for tests.
        vocab_size: Leave out later entries of the vocabulary, which only fill it up.
        cg: Whether upstream captures a CUDA graph, a matter of speed; ours does not.
        enable_timing: Print how long it took.
        output_scores: Keep the logits of each new token.
        streamer: Has `put` for tokens and `end`.
    Returns:
        The sequences, and the logits where they are kept.
    Raises:
        ValueError: As `sample`.
    """
    begun = time.perf_counter()
    params = InferenceParams(max_seqlen=max_length, max_batch_size=input_ids.shape[0])
    new, sequences, scores = input_ids, input_ids, []
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while True:
        out = model(new, position_ids=None, inference_params=params, num_last_tokens=1)
        logits = out.logits[:, -1, :vocab_size]
        params.seqlen_offset += new.shape[1]
        if output_scores:
            scores.append(logits)
        if teacher_outputs is not None and params.seqlen_offset < teacher_outputs.shape[1]:
            token = teacher_outputs[:, params.seqlen_offset]
        else:
            if repetition_penalty != 1:
                logits = penalise_repetition(logits, sequences, repetition_penalty)
            token = sample(logits, top_k, top_p, min_p, temperature)
        new = token[:, None]
        sequences = torch.cat([sequences, new], dim=1)
        if streamer is not None:
            streamer.put(new.cpu())
        if params.seqlen_offset >= max_length - 1 or (eos_token_id is not None and bool((new == eos_token_id).all())):
            break
    if streamer is not None:
        streamer.end()
    if enable_timing:
        if input_ids.is_cuda:
            torch.cuda.synchronize(input_ids.device)
        print(f"Prompt processing + decoding time: {1e3 * (time.perf_counter() - begun):.0f}ms")
    return Generated(sequences, tuple(scores) if output_scores else None)


class GenerationMixin:
    """Gives a model `generate`."""

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Generated | Tensor:
        """Continue prompts of shape (b, l) to (b, max_length) at most; the rest as in `decode`.

        Returns:
            The sequences; with `return_dict_in_generate` a `Generated`, whose scores are there with `output_scores`.
        """
        made = decode(
            input_ids, self, max_length, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature,
            output_scores=output_scores, **kwargs,
        )  # fmt: skip
        return made if return_dict_in_generate else made.sequences
