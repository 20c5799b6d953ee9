"""Clips made sample by sample: drawn by the native step loop or in PyTorch, streamed, saved and gone on with.

    generator = Generator(model, quantizer, sample_rate)          from a Checkpoint: Generator.of(checkpoint)
    session = generator.start(seeds=[1, 2, 3], label=..., prompt=...)
    made = session.advance(1600, Draw(temperature=0.9))           levels (3, 1600) and their likelihoods
    session.save("clip.session"); session = generator.resume("clip.session")

    for chunk in stream(generator, [1], seconds=5): ...           float32 (b, n), as soon as they are made

A clip's bytes depend on the model, its label, its prompt and its seed: the same alone, in a batch, in chunks of any
size, and resumed from a file, on one machine and one backend. The backends round differently (1e-6 of a logit in
float32), so across them a clip is the same until a draw falls that close to the border between two levels.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from ssm_kernels.step_network.native import Made, Streams
from ssm_kernels.step_network.pack import Weights
from ssm_kernels.step_network.reference import Draw, draw_token
from torch import Tensor

from ssmcore.engine.weights import load_weights, save_weights
from ssmcore.state import State

from .errors import AudioError
from .models.packed import Packed, Unpackable
from .models.sashimi import SaShiMi
from .quantize import Quantizer

__all__ = ["Draw", "Generator", "Made", "Session", "stream"]

Backend = Literal["auto", "native", "torch"]
"""auto: native where the model can be packed and there is a compiler, else PyTorch."""
PREFILL = 1 << 15
"""Samples of a prompt that are fed at once."""


@dataclass
class Clip:
    """All that one clip remembers between two samples."""

    state: State
    """Of the PyTorch model, batch size 1."""
    newest: int
    """The level that is fed next."""
    position: int
    """Samples drawn so far."""


class Generator:
    """A model that is ready to make clips.

    Args:
        model: In evaluation mode; its weights must not change any more.
        quantizer: Between waveforms and its levels.
        sample_rate: In Hz.
        backend: See Backend.
        weights: Format of the native weights; see the room's README for what each loses.
        threads: Clips side by side, natively; None takes torch's number of threads.
    Raises:
        AudioError: The native backend was asked for and cannot run this model; or a name is unknown.
    """

    def __init__(
        self,
        model: SaShiMi,
        quantizer: Quantizer,
        sample_rate: int,
        *,
        backend: Backend = "auto",
        weights: Weights = "float32",
        threads: int | None = None,
    ):
        if backend not in get_args(Backend) or weights not in get_args(Weights):
            raise AudioError(
                f"backend={backend!r}, weights={weights!r}, expected one of {', '.join(get_args(Backend))} and one of "
                f"{', '.join(get_args(Weights))}"
            )
        if quantizer.levels != model.config.levels:
            raise AudioError(f"the quantizer has {quantizer.levels} levels, the model {model.config.levels}")
        self.model, self.quantizer, self.sample_rate = model.eval(), quantizer, sample_rate
        self.threads = threads or torch.get_num_threads()
        self.packed: Packed | None = None
        self.why_not_native = "PyTorch was asked for"
        if backend != "torch":
            try:
                if self._device.type != "cpu":
                    raise Unpackable(f"its weights are on {self._device}, the step loop runs on a CPU")
                self.packed = Packed(model, weights)
            except Unpackable as error:
                self.why_not_native = str(error)
                if backend == "native" or weights != "float32":
                    raise AudioError(f"the native step loop cannot run this model: {error}") from None

    @classmethod
    def of(cls, checkpoint: Any, **options: Any) -> "Generator":
        """Of an `audio.checkpoint.Checkpoint`; options and errors as above."""
        return cls(checkpoint.model, checkpoint.quantizer, checkpoint.sample_rate, **options)

    @property
    def backend(self) -> str:
        """Which was chosen: native or torch."""
        return "torch" if self.packed is None else "native"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration and the weights."""
        digest = hashlib.sha256(repr((self.model.config, self.quantizer, self.sample_rate)).encode())
        for name, t in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def start(
        self,
        seeds: Sequence[int],
        *,
        label: Tensor | None = None,
        prompt: Tensor | Sequence[Tensor] | None = None,
    ) -> "Session":
        """Begin clips.

        Args:
            seeds: One a clip, b.
            label: Labels, int64, shape (b, k) or (1, k) for all; None is unknown.
            prompt: Levels that the clips go on from, int64, shape (t,), one for all or one a clip.
        Returns:
            A session whose next sample is the first one after the prompt.
        Raises:
            ValueError: No seeds, or label or prompt do not fit the model.
        """
        if not seeds or not all(0 <= s < 2**63 for s in seeds):
            raise ValueError(f"Generator.start: seeds={list(seeds)}, expected at least one, each from 0 to 2^63 - 1")
        b = len(seeds)
        prompts = [prompt] * b if prompt is None or isinstance(prompt, Tensor) else list(prompt)
        if len(prompts) != b:
            raise ValueError(f"Generator.start: {len(prompts)} prompts, expected one for all or b={b}")
        labels = self.model._labels(b, label if label is None or len(label) == b else label.expand(b, -1), self._device)
        clips: list[Clip] = []
        for i, given in enumerate(prompts):
            same = next((c for c, p, row in zip(clips, prompts, labels, strict=False)
                         if p is given and torch.equal(row, labels[i])), None)  # fmt: skip
            clips.append(Clip(same.state, same.newest, 0) if same else self._prefill(given, labels[i : i + 1]))
        return Session(self, list(seeds), clips)

    def resume(self, path: str | Path) -> "Session":
        """Go on with what `Session.save` wrote.

        Args:
            path: The file.
        Raises:
            AudioError: No such file, no session, or one of another model.
        """
        try:
            tensors, note = load_weights(path)
        except (ValueError, OSError) as error:
            raise AudioError(f"{path}: no session ({str(error).removeprefix('load_weights: ')})") from None
        if note.get("kind") != "audio session":
            raise AudioError(f"{path}: no session; give a file that was saved while generating")
        if note["model"] != self.fingerprint:
            raise AudioError(f"{path}: a session of another model; give the checkpoint that it was made with")
        clips = []
        for i, (newest, position) in enumerate(zip(note["newest"], note["position"], strict=True)):
            state = self.model.init_state(1)
            for name, t in tensors.items():
                if name.startswith(f"clip/{i}/"):
                    _put(state, name.split("/")[2:], t.to(self._device))
            clips.append(Clip(state, newest, position))
        session = Session(self, note["seeds"], clips)
        if self.packed is not None and note["native"] == self._native_form:
            # The very numbers: through the PyTorch state they would be rounded once.
            session.streams = Streams(tensors["arenas"], tensors["registers"])
        return session

    @property
    def _device(self) -> torch.device:
        return self.model.head.weight.device

    @property
    def _native_form(self) -> list | None:
        """What has to agree for a native memory to be read back as it is."""
        if self.packed is None:
            return None
        network = self.packed.network
        return [self.packed.weights, network.lanes, network.sizes["arena"]]

    def _prefill(self, prompt: Tensor | None, label: Tensor) -> Clip:
        """Feed everything but the newest level, in pieces that bound the memory."""
        given = torch.empty(0, dtype=torch.int64) if prompt is None else prompt.long().cpu()
        if given.ndim != 1:
            raise ValueError(f"Generator.start: prompt has shape {tuple(given.shape)}, expected (t,)")
        levels = torch.cat([torch.tensor([self.quantizer.zero]), given]).to(self._device)
        state = self.model.init_state(1, label=label)
        for piece in levels[:-1].split(PREFILL):
            if len(piece):
                _, left = self.model(piece[None], state)
                assert left is not None
                state = left
        return Clip(state, int(levels[-1]), 0)


class Session:
    """Clips on their way. Made by a Generator."""

    def __init__(self, generator: Generator, seeds: list[int], clips: list[Clip]):
        self.generator, self.seeds, self._clips = generator, seeds, clips
        self.streams: Streams | None = None
        if generator.packed is not None:
            each = [generator.packed.streams(c.state, torch.tensor([c.newest]), c.position) for c in clips]
            self.streams = Streams(
                torch.cat([s.arenas for s in each]),
                torch.cat([s.registers for s in each]),
            )

    @property
    def positions(self) -> list[int]:
        """Samples that each clip has drawn."""
        return self.streams.registers[:, 1].tolist() if self.streams else [c.position for c in self._clips]

    def advance(self, count: int, draw: Draw | None = None) -> Made:
        """Draw the next samples of every clip.

        Args:
            count: Samples a clip, n.
            draw: How; None draws from the model's own distribution.
        Returns:
            Levels (b, n) and their log-likelihoods in nats (b, n), at temperature 1.
        """
        return self._run(count, draw or Draw(), None, False)

    def score(self, given: Tensor) -> Made:
        """Feed given samples in place of drawn ones, and say what the model expected.

        Args:
            given: Levels, int64, shape (b, n).
        Returns:
            The levels, their log-likelihoods (b, n), and the logits before each, (b, n, levels): the same bits whatever
            pieces the samples are given in.
        Raises:
            ValueError: given does not fit.
        """
        if given.ndim != 2 or len(given) != len(self.seeds) or given.is_floating_point():
            raise ValueError(f"Session.score: given is {given.dtype} {tuple(given.shape)}, expected int64 (b, n)")
        if given.numel() and not 0 <= int(given.min()) <= int(given.max()) < self.generator.quantizer.levels:
            raise ValueError(
                f"Session.score: levels from {int(given.min())} to {int(given.max())} do not fit the model"
            )
        return self._run(given.shape[1], Draw(), given.long().cpu(), True)

    def expect(self) -> Tensor:
        """Logits of the next sample of every clip, before it is known: the bits that `score` gives; then `feed` it.

        Returns:
            Shape (b, levels).
        """
        return self._run(1, Draw(), torch.zeros(len(self.seeds), 1, dtype=torch.int64), True).logits[:, 0]

    def feed(self, levels: Tensor) -> None:
        """Say which samples came after `expect`.

        Args:
            levels: int64, shape (b,).
        """
        if self.streams is not None:
            self.streams.registers[:, 0] = levels
        for clip, level in zip(self._clips, levels.tolist(), strict=True):
            clip.newest = level

    @torch.no_grad()
    def _run(self, count: int, draw: Draw, given: Tensor | None, keep_logits: bool) -> Made:
        if self.streams is not None:
            run = self.generator.packed.network.run
            return run(self.streams, count, seeds=self.seeds, draw=draw, given=given, keep_logits=keep_logits,
                       threads=self.generator.threads)  # fmt: skip
        made = [
            _step_clip(self.generator.model, clip, seed, count, draw, None if given is None else given[i])
            for i, (clip, seed) in enumerate(zip(self._clips, self.seeds, strict=True))
        ]
        tokens, likelihood, logits = (torch.stack(parts) for parts in zip(*made, strict=True))
        return Made(tokens, likelihood, logits if keep_logits else None)

    @torch.no_grad()
    def clips(self) -> list[Clip]:
        """What each clip remembers, as the PyTorch model has it."""
        if self.streams is None:
            return self._clips
        out = []
        for i, clip in enumerate(self._clips):
            one = Streams(self.streams.arenas[i : i + 1], self.streams.registers[i : i + 1])
            state = self.generator.packed.state(one, clip.state["label"])
            out.append(Clip(state, int(one.registers[0, 0]), int(one.registers[0, 1])))
        return out

    def save(self, path: str | Path) -> None:
        """Write everything that is needed to go on, whole or not at all: safetensors, for `Generator.resume`.

        Args:
            path: Where; replaced if it exists.
        Raises:
            AudioError: The disk refuses it.
        """
        clips = self.clips()
        note = {
            "kind": "audio session", "model": self.generator.fingerprint, "seeds": self.seeds,
            "newest": [c.newest for c in clips], "position": [c.position for c in clips],
            "native": self.generator._native_form,
        }  # fmt: skip
        tensors = {f"clip/{i}/{name}": t for i, clip in enumerate(clips) for name, t in _flat(clip.state)}
        if self.streams is not None:
            tensors |= {"arenas": self.streams.arenas, "registers": self.streams.registers}
        try:
            save_weights(path, tensors, note)
        except (OSError, SafetensorError) as error:
            Path(path).with_name(Path(path).name + ".part").unlink(missing_ok=True)
            raise AudioError(f"{path}: cannot be written ({error})") from None


def stream(
    generator: Generator,
    seeds: Sequence[int],
    *,
    seconds: float,
    draw: Draw | None = None,
    label: Tensor | None = None,
    prompt: Tensor | Sequence[Tensor] | None = None,
    session: Session | None = None,
    chunk_seconds: float = 0.1,
) -> Iterator[Tensor]:
    """Make clips and hand them out while they are made. Closing the iterator stops the work.

    Args:
        generator: The model.
        seeds: One a clip, b.
        seconds: Length of each, the prompt not counted.
        draw: How samples are drawn.
        label, prompt: As Generator.start.
        session: Go on with this one, whose seeds, label and prompt hold; it is left where the stream ended.
        chunk_seconds: Length of a chunk.
    Yields:
        Waveforms, float32, shape (b, n), n samples at a time; together round(seconds * sample_rate).
    Raises:
        ValueError: seconds or chunk_seconds is not above 0, or as Generator.start.
    """
    if not (seconds > 0 and chunk_seconds > 0):
        raise ValueError(f"stream: seconds={seconds}, chunk_seconds={chunk_seconds}, expected both above 0")
    session = session or generator.start(seeds, label=label, prompt=prompt)
    left, chunk = round(seconds * generator.sample_rate), max(1, round(chunk_seconds * generator.sample_rate))
    while left > 0:
        made = session.advance(min(chunk, left), draw)
        left -= made.tokens.shape[1]
        yield generator.quantizer.decode(made.tokens)


def _step_clip(
    model: SaShiMi, clip: Clip, seed: int, count: int, draw: Draw, given: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (n,), log-likelihoods (n,) and logits (n, levels) of one clip, which goes on.

    One clip at a time: a product of matrices rounds otherwise in a larger batch, and a clip would depend on the others.
    """
    device, levels, rows = model.head.weight.device, [], []
    for t in range(count):
        logits, clip.state = model.step(torch.tensor([clip.newest], device=device), clip.state)
        rows.append(logits[0].float().cpu())
        clip.newest = draw_token(rows[-1], draw, seed, clip.position) if given is None else int(given[t])
        clip.position += 1
        levels.append(clip.newest)
    tokens = torch.tensor(levels, dtype=torch.int64)
    logits = torch.stack(rows) if rows else torch.zeros(0, model.config.levels)
    return tokens, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0], logits


def _flat(state: State, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _put(state: State, path: Sequence[str], value: Tensor) -> None:
    for key in path[:-1]:
        state = state.setdefault(key, {})
    state[path[-1]] = value
