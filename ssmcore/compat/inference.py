"""What mamba_ssm's modules keep between calls of a generation: states by layer, and how many tokens they have seen."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class InferenceParams:
    """The running state of a generation; a module writes its own, (b, ...), under its `layer_idx`."""

    max_seqlen: int
    """Tokens at most; a recurrent layer does not use it."""
    max_batch_size: int
    """Batch items at most."""
    seqlen_offset: int = 0
    """Tokens that were seen; the caller counts them up. 0 makes the next call a first one."""
    batch_size_offset: int = 0
    """Not used."""
    key_value_memory_dict: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)
    """States by layer."""
    lengths_per_sample: Tensor | None = None
    """Tokens of each item, shape (b,)."""

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin anew. No shapes, raises nothing; the states stay and are zeroed by their layers."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class CachesStates:
    """How both modules find their states in an InferenceParams, or where their caller keeps them."""

    layer_idx: int | None

    def _get_states_from_cache(
        self, inference_params: InferenceParams, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The convolution's and the scan's state, (b, ...), made where there is none.

        Raises:
            ValueError: The module has no layer_idx, or the states are of another batch size.
        """
        if self.layer_idx is None:
            raise ValueError(f"{type(self).__name__}: inference_params needs a layer_idx, which the module has not got")
        memory = inference_params.key_value_memory_dict
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(batch_size, inference_params.max_seqlen)
        conv_state, ssm_state = memory[self.layer_idx]
        if conv_state.shape[0] != batch_size:
            name = type(self).__name__
            raise ValueError(f"{name}: the states hold {conv_state.shape[0]} items, but the input has b={batch_size}")
        if initialize_states:
            conv_state.zero_()
            ssm_state.zero_()
        return conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype=None, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Zeros for the two states, (b, ...)."""
        raise NotImplementedError
