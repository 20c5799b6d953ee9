"""python -m audio.generate --checkpoint RUN_DIR --seconds 5 --out out.wav: make clips, sample by sample.

Heavy imports stand inside the functions, so that --help and a refused option answer at once.
"""

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import AudioError

if TYPE_CHECKING:
    from torch import Tensor

    from .checkpoint import Checkpoint
    from .generation import Session

PROG = "python -m audio.generate"
MOST_CLIPS, MOST_SECONDS = 4096, 24 * 3600
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Make clips of raw audio with a trained SaShiMi, on one core in real time or faster; or with a DiffWave."""

    checkpoint: str = ""
    """Run folder of python -m audio.train, or a .safetensors file from one."""
    seconds: float = 5.0
    """Length of each clip, the prompt not counted."""
    out: str = "out.wav"
    """File to write, .wav or .flac; several clips get -0, -1, ... before the ending."""
    batch: int = 1
    """Clips to make; clip i has the seed `seed + i`, and is what that seed alone gives."""
    seed: int | None = None
    """Seed of the first clip, 0 if left out; the same seed gives the same bytes. With --from-session, its own."""
    temperature: float = 1.0
    """Logits are divided by it first; below 1 is tamer, 0 takes the likeliest level."""
    top_k: int = 0
    """Then only so many of the likeliest levels are kept; 0 keeps all."""
    top_p: float = 1.0
    """Then only the likeliest levels that together weigh this share are kept."""
    label: str = ""
    """Names of the clip's labels, one a kind that the model knows, with commas between: `7,jackson`; `-` is unknown."""
    prompt: str | None = None
    """Sound file that the clips go on from; any length and rate."""
    include_prompt: bool = True
    """Write the prompt, as the model heard it, before what follows."""
    from_session: str | None = None
    """Session file to go on from, in place of seed, batch, label and prompt; what is written starts where it ended."""
    save_session: str | None = None
    """Write a session file at the end, for --from-session. An interrupted run writes one beside the output."""
    subtype: Literal["16", "24", "float"] = "16"
    """Bits of a written sample; FLAC has no float."""
    picture: bool = True
    """Also draw waveform and mel spectrogram, a .png beside each clip (the first 16 of them)."""
    backend: Literal["auto", "native", "torch"] = "auto"
    """native: the whole step in compiled code; torch: the reference, 100 times slower; auto: native if it can be."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Format of the native weights: narrower is faster, and cost a trained model 0.0001 bits a sample."""
    threads: int = 1
    """Clips made side by side."""
    steps: int | None = None
    """Steps from noise to sound, for DiffWave; fewer are quicker and coarser, null takes all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 2 for input that cannot be used, 130 after an interruption.
    """
    from ssmcore.engine import cli, guarded

    config = cli.parse(GenerateConfig, argv, prog=PROG, usage="--checkpoint RUN_DIR [--seconds 5] [--out out.wav]")

    def job() -> int:
        check(config)
        return generate(config)

    return guarded(job, prog=PROG, refused=AudioError)


def check(config: GenerateConfig) -> None:
    """Refuse what can be refused before anything heavy is imported.

    Args:
        config: What to do.
    Raises:
        AudioError: A number lies outside its range, or a path does not fit.
    """
    ending, folder = Path(config.out).suffix.lower(), Path(config.out).parent
    if not config.checkpoint:
        raise AudioError("give a trained model with --checkpoint RUN_DIR")
    if ending not in (".wav", ".flac") or (ending == ".flac" and config.subtype == "float"):
        raise AudioError(f"--out {config.out} with --subtype {config.subtype}: WAV takes 16, 24, float, FLAC 16, 24")
    if not folder.is_dir():
        raise AudioError(f"--out {config.out}: there is no folder {folder}")
    if not 0 < config.seconds <= MOST_SECONDS or not 1 <= config.batch <= MOST_CLIPS or config.threads < 1:
        raise AudioError(
            f"--seconds {config.seconds} --batch {config.batch} --threads {config.threads}: expected seconds up to "
            f"{MOST_SECONDS}, 1 to {MOST_CLIPS} clips and at least one thread"
        )
    if not config.temperature >= 0 or config.top_k < 0 or not 0 < config.top_p <= 1:
        raise AudioError(
            f"--temperature {config.temperature} --top-k {config.top_k} --top-p {config.top_p}: expected temperature "
            "and top-k of at least 0 and 0 < top-p <= 1"
        )
    if config.seed is not None and not 0 <= config.seed < 2**62:
        raise AudioError(f"--seed {config.seed}: expected 0 to {2**62 - 1}")
    if config.from_session and (config.prompt or config.label or config.batch != 1 or config.seed is not None):
        raise AudioError("--from-session brings prompt, labels, seeds and number of clips; leave those options out")


def generate(config: GenerateConfig) -> int:
    """Make the clips and write them with their pictures and notes.

    Args:
        config: What to do, checked.
    Returns:
        0, or 130 where it was interrupted; what was made until then is written, and SaShiMi leaves a session to go on.
    Raises:
        AudioError: The checkpoint, prompt, label, session or disk.
    """
    from .checkpoint import Checkpoint, check_options

    checkpoint = Checkpoint.load(config.checkpoint, None)
    check_options(checkpoint, config)
    return (_out_of_noise if checkpoint.network == "diffwave" else _sample_by_sample)(config, checkpoint)


def _sample_by_sample(config: GenerateConfig, checkpoint: "Checkpoint") -> int:
    """SaShiMi's clips."""
    import torch

    from .generation import Draw, Generator

    options = {"backend": config.backend, "weights": config.weights, "threads": config.threads}
    generator = Generator.of(checkpoint, **options)
    if config.backend == "auto" and generator.backend == "torch":
        print(f"{PROG}: stepping in PyTorch, slowly: {generator.why_not_native}", file=sys.stderr)
    heard = None
    if config.from_session:
        session = generator.resume(config.from_session)
    else:
        heard = _prompt(config, checkpoint)
        session = generator.start(_seeds(config), label=_label(config, checkpoint), prompt=heard)
    draw = Draw(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    begun, started = session.positions, time.perf_counter()
    levels, likelihood, whole = _make(session, round(config.seconds * checkpoint.sample_rate), draw)
    spent, drawn = time.perf_counter() - started, likelihood.shape[1]
    own = [
        {"seed": seed, "first_sample": first, **_likelihood(nats, drawn)}
        for seed, first, nats in zip(session.seeds, begun, likelihood.double().sum(1).tolist(), strict=True)
    ]
    if heard is not None and config.include_prompt:
        levels = torch.cat([heard.expand(len(levels), -1), levels], 1)
    note = _note(config, checkpoint, likelihood.numel(), spent)
    note |= {"backend": generator.backend, "weights": config.weights, "draw": asdict(draw), "complete": whole}
    note |= {"prompt": config.prompt, "from_session": config.from_session}
    _write(config, checkpoint.quantizer.decode(levels), own, note, len(own))
    saved = config.save_session or (None if whole else str(Path(config.out).with_suffix(".session")))
    if saved:
        session.save(saved)
    if not whole:
        print(
            f"interrupted; go on with: {PROG} --checkpoint {config.checkpoint} --from-session {saved}", file=sys.stderr
        )
    return 0 if whole else 130


def _out_of_noise(config: GenerateConfig, checkpoint: "Checkpoint") -> int:
    """DiffWave's clips, one after another, so that a clip does not depend on its neighbours; whole ones are kept."""
    import torch
    from tqdm import tqdm

    model, label, seeds = checkpoint.model, _label(config, checkpoint), list(_seeds(config))
    length, total = (
        max(1, round(config.seconds * checkpoint.sample_rate)),
        config.steps or checkpoint.model.config.steps,
    )
    waves, started = [], time.perf_counter()
    with tqdm(total=len(seeds) * length, desc="making", unit=" samples", unit_scale=True, bar_format=BAR) as bar:
        try:
            for seed in seeds:
                tell = functools.partial(_show, bar, length / total)
                waves.append(model.sample(length, [seed], label=label, steps=total, tell=tell)[0].cpu())
        except KeyboardInterrupt:
            pass
    note = _note(config, checkpoint, len(waves) * length, time.perf_counter() - started)
    note |= {"backend": "torch", "steps": total, "complete": len(waves) == len(seeds)}
    own = [{"seed": seed} for seed in seeds[: len(waves)]]
    made = torch.stack(waves) if waves else torch.zeros(0, length)
    _write(config, made, own, note, len(seeds))
    if note["complete"]:
        return 0
    print(f"interrupted: {len(waves)} of {len(seeds)} clips were made; the next seed is {seeds[len(waves)]}",
          file=sys.stderr)  # fmt: skip
    return 130


def _show(bar: Any, samples: float, *_: int) -> None:
    bar.update(samples)


def _seeds(config: GenerateConfig) -> range:
    return range(config.seed or 0, (config.seed or 0) + config.batch)


def _label(config: GenerateConfig, checkpoint: "Checkpoint") -> "Tensor":
    """Labels, int64, shape (1, k)."""
    names = [name.strip() for name in config.label.split(",") if name.strip()]
    return checkpoint.label(*(None if name == "-" else name for name in names))


def _prompt(config: GenerateConfig, checkpoint: "Checkpoint") -> "Tensor | None":
    """Levels of the prompt at the model's rate, shape (t,)."""
    if config.prompt is None:
        return None
    from .files import read_audio, to_mono

    return checkpoint.quantizer.encode(to_mono(*read_audio(config.prompt), checkpoint.sample_rate))


def _make(session: "Session", count: int, draw: Any) -> tuple["Tensor", "Tensor", bool]:
    """Levels (b, t) and log-likelihoods (b, t), and whether all of them were made; Ctrl-C ends it between chunks."""
    import torch
    from tqdm import tqdm

    b, rate = len(session.seeds), session.generator.sample_rate
    chunk = max(1, rate // 10) if session.generator.backend == "native" else max(1, rate // 100)
    made, whole, left = [], True, count
    with tqdm(total=b * count, desc="making", unit=" samples", unit_scale=True, bar_format=BAR, disable=None) as bar:
        try:
            while left > 0:
                made.append(session.advance(min(chunk, left), draw))
                left -= made[-1].tokens.shape[1]
                bar.update(made[-1].tokens.numel())
        except KeyboardInterrupt:
            whole = False
    nothing = torch.zeros(b, 0)
    levels = torch.cat([nothing.long(), *(m.tokens for m in made)], 1)
    return levels, torch.cat([nothing, *(m.log_likelihood for m in made)], 1), whole


def _write(config: GenerateConfig, waves: "Tensor", own: list[dict], note: dict, clips: int) -> None:
    from .clip_files import write_clips

    options = {"subtype": config.subtype, "picture": config.picture, "clips": clips}
    write_clips(Path(config.out), waves, own, note, **options)


def _likelihood(nats: float, drawn: int) -> dict[str, Any]:
    """What a clip's note says of its likelihood."""
    bits = -nats / drawn / 0.6931471805599453 if drawn else None
    return {"samples_drawn": drawn, "log_likelihood_nats": nats, "bits_per_sample": bits}


def _note(config: GenerateConfig, checkpoint: "Checkpoint", samples: int, spent: float) -> dict:
    """What all clips of a run have in common, for the JSON beside each."""
    return {
        "checkpoint": {"path": config.checkpoint, "sha256": checkpoint.sha256},
        "network": checkpoint.network,
        "model": asdict(checkpoint.model.config),
        "quantizer": asdict(checkpoint.quantizer),
        "sample_rate": checkpoint.sample_rate,
        "label": config.label,
        "wall_seconds": spent,
        "samples_per_second": samples / spent,
        "real_time_factor": samples / spent / checkpoint.sample_rate,
    }


if __name__ == "__main__":
    sys.exit(main())
