"""The PyTorch step of a whole batch as CUDA graphs: one launch a sample in place of several hundred.

Which tokens wait in the pools depends on the sample's place in a group, so a step has as many forms as there are
places (16 for pools of 4 and 4): one graph each, from a state in fixed memory to the next one, round and round. The
draw is part of it, and nothing waits for the device. On a CPU the same steps run without a graph: the tests do so.

    clips of a batch are at one place: prompts of one length, or none
    bits depend on the batch, as products of matrices round by their size; the native loop has no such dependence
"""

import math
from collections.abc import Callable, Sequence

import torch
from ssm_kernels.step_network.native import Made
from ssm_kernels.step_network.reference import Draw, draw_tokens
from torch import Tensor

from ssmcore.state import State, map_state

from .sashimi import SaShiMi


class GraphedSteps:
    """Clips that step together, on the device of the model.

    Args:
        model: In evaluation mode; its weights must not change any more.
        states: Of each clip, batch size 1, all at the same place in every pool.
        newest: The level that each clip is fed next.
        seeds: One a clip, b.
        draw: How samples are drawn.
        positions: Samples that each clip has drawn before; None is 0.
    Raises:
        ValueError: The clips are at different places.
    """

    def __init__(
        self,
        model: SaShiMi,
        states: Sequence[State],
        newest: Sequence[int],
        seeds: Sequence[int],
        draw: Draw | None = None,
        positions: Sequence[int] | None = None,
    ):
        device = model.head.weight.device
        self.model, self.draw = model, draw or Draw()
        try:
            state = map_state(lambda *parts: torch.cat(parts), *states)
        except RuntimeError:
            raise ValueError(
                "GraphedSteps: the clips are at different places in their pools, expected prompts of one length"
            ) from None
        self.tokens, self.seeds, self.positions = (
            torch.tensor(list(numbers), dtype=torch.int64, device=device)
            for numbers in (newest, seeds, positions or [0] * len(seeds))
        )
        self.likelihood = torch.zeros(len(seeds), device=device)
        self.place = 0
        self.states = self._trial(state)
        self.replays = [self._record(place) for place in range(len(self.states))]

    @torch.no_grad()
    def advance(self, count: int) -> Made:
        """Draw the next samples of every clip.

        Args:
            count: Samples a clip, n.
        Returns:
            Levels (b, n) and their log-likelihoods in nats (b, n), at temperature 1, on the CPU.
        """
        tokens = self.tokens.new_empty(len(self.tokens), count)
        likelihood = self.likelihood.new_empty(len(self.tokens), count)
        for t in range(count):
            self.replays[self.place]()
            self.place = (self.place + 1) % len(self.replays)
            tokens[:, t], likelihood[:, t] = self.tokens, self.likelihood
        return Made(tokens.cpu(), likelihood.cpu(), None)

    @property
    def state(self) -> State:
        """What the clips remember now, a copy, batch size b."""
        return map_state(torch.clone, self.states[self.place])

    @torch.no_grad()
    def _trial(self, state: State) -> list[State]:
        """Memory for the state at every place, by steps whose results are thrown away; they also warm the device up."""
        found = [map_state(torch.clone, state)]
        period = math.prod(self.model.config.pool)
        for _ in range(period):
            logits, state = self._step(state)
            draw_tokens(logits, self.draw, self.seeds, self.positions)
            found.append(map_state(torch.clone, state))
        return found[:period]

    def _step(self, state: State) -> tuple[Tensor, State]:
        logits, new = self.model.advance(self.tokens[:, None], state, state["label"])
        assert new is not None
        return logits[:, 0].float(), new

    def _whole_step(self, place: int) -> None:
        """From one place's memory to the next one's; nothing here may wait for the device."""
        logits, new = self._step(self.states[place])
        level = draw_tokens(logits, self.draw, self.seeds, self.positions)
        self.likelihood.copy_(logits.log_softmax(-1).gather(1, level[:, None])[:, 0])
        self.tokens.copy_(level)
        self.positions.add_(1)
        map_state(lambda to, value: to.copy_(value), self.states[(place + 1) % len(self.states)], new)

    @torch.no_grad()
    def _record(self, place: int) -> Callable[[], None]:
        """What runs a step: the replay of its graph, or the step itself where there are no graphs."""
        if self.tokens.device.type != "cuda":
            return lambda: self._whole_step(place)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # recorded, not run
            self._whole_step(place)
        return graph.replay
