"""Plucked strings: a model of raw samples learns melodies that a rule makes, and plays one of its own."""

import base64
import time
from dataclasses import replace

import torch
from torch import Tensor

from audio.checkpoint import Checkpoint
from audio.data import load_collection
from audio.experiment import Experiment
from audio.files import encode_audio
from audio.generation import Draw, Generator
from audio.plucked import REGISTERS, melody
from audio.recipes import RECIPES
from audio.spectrogram import BANDS, log_mel

from ..charts import drawing
from ..report import Command, Figure, Section, Sound, Table, Text
from . import Visit

SECONDS, SEED, DRAW = 3.0, 1, Draw(temperature=0.85, top_p=0.95)


def run(visit: Visit) -> Section:
    """Train for half a minute, score on melodies that were held out, and listen."""
    base = RECIPES["plucked"]()
    config = replace(
        base, epochs=1, steps_per_epoch=2 if visit.tiny else 250, samples=0, accelerator="cpu",
        output=str(visit.folder / "runs"),
    )  # fmt: skip
    experiment, started = Experiment(config, load_collection(config.data)), time.monotonic()
    experiment.train()
    trained = time.monotonic() - started
    scores = experiment.report()
    best = Checkpoint.load(experiment.run_dir)
    clips, speed, backend = _play(best, 0.2 if visit.tiny else SECONDS)
    simple = min(bits for name, bits in scores.items() if "sashimi" not in name)
    rate = best.sample_rate
    return Section(
        title="Audio: strings plucked by a model of raw samples",
        summary=f"{scores['sashimi']:.2f} bits a sample on melodies it never heard, {simple:.2f} for the best simple "
        f"model; it plays {speed:.1f} times faster than the sound lasts.",
        blocks=[
            Text(
                f"A SaShiMi of {sum(p.numel() for p in best.model.parameters()):,} parameters, S4D layers at three "
                f"rates, trained for {trained:.0f} s on {len(experiment.sounds['train'])} melodies of two seconds. It "
                f"sees nothing but samples, {rate:,} a second, 256 levels each, and the register as a label; the "
                "melodies are plucks in a feedback loop (Karplus and Strong, 1983), walking over a pentatonic scale."
            ),
            *_sounds(clips, rate),
            Figure(
                _spectrograms(clips, rate),
                "The same clips, mel bands over time: a string is a ladder of harmonics, and the high ones fade first.",
                "Spectrograms of a made and a generated melody for each register.",
            ),
            _table(scores),
            Text(
                f"The clips are drawn at temperature {DRAW.temperature} and top-p {DRAW.top_p} from seed {SEED}, and "
                f"chosen for nothing, by the {'native step loop' if backend == 'native' else 'PyTorch step'}, "
                f"{len(clips)} at once; threads: {torch.get_num_threads()}. So short a training teaches plucks only."
            ),
        ],
        next=[
            Command("python -m apps.studio", "Play a model in the browser, and hear it while it makes the sound."),
            Command(
                "python -m audio.train --recipe fsdd_small --data fsdd.tar",
                "Spoken digits, told which digit and who speaks; any folder of recordings will do.",
            ),
        ],
    )


def _play(best: Checkpoint, seconds: float) -> tuple[dict[str, tuple[Tensor, Tensor]], float, str]:
    """Made and generated melody by register, seconds of sound a second, and what ran the steps."""
    generator = Generator.of(best)
    names = best.labels[0]
    count = round(seconds * best.sample_rate)
    label = torch.arange(len(names))[:, None]
    generator.start([SEED]).advance(1)  # builds the native loop
    session, started = generator.start([SEED] * len(names), label=label), time.monotonic()
    made = session.advance(count, DRAW).tokens
    speed = len(names) * seconds / (time.monotonic() - started)
    waves = best.quantizer.decode(made)
    clips = {name: (melody(name, 10_000 + SEED, seconds), waves[i]) for i, name in enumerate(names)}
    return {name: clips[name] for name in REGISTERS}, speed, generator.backend


def _sounds(clips: dict[str, tuple[Tensor, Tensor]], rate: int) -> list[Sound]:
    sounds = []
    for name, pair in clips.items():
        for wave, kind in zip(pair, ("made by the rule", "played by the model"), strict=True):
            data = base64.b64encode(encode_audio(wave, rate, "wav")).decode()
            sounds.append(Sound(data, f"{name} register, {kind}"))
    return sounds


def _spectrograms(clips: dict[str, tuple[Tensor, Tensor]], rate: int) -> str:
    with drawing(8, 3.6, "strings") as (figure, svg):
        axes = figure.subplots(2, len(clips), sharex=True, sharey=True)
        for column, (name, pair) in enumerate(clips.items()):
            for axis, wave, kind in zip(axes[:, column], pair, ("rule", "model"), strict=True):
                extent = (0, len(wave) / rate, 0, BANDS)
                axis.imshow(log_mel(wave, rate), origin="lower", aspect="auto", extent=extent, vmin=-12, vmax=5)
                axis.set_title(f"{name}, {kind}")
                axis.grid(visible=False)
        for axis in axes[-1]:
            axis.set_xlabel("seconds")
        for axis in axes[:, 0]:
            axis.set_ylabel("mel band")
        return svg()


def _table(scores: dict[str, float]) -> Table:
    rows = [["SaShiMi" if name == "sashimi" else name, f"{bits:.3f}"] for name, bits in scores.items()]
    best = min(range(len(rows)), key=lambda i: float(rows[i][1]))
    caption = "Bits a sample on the held-out melodies, all of their samples; less is better."
    return Table(["", "bits a sample"], rows, caption, strong=[best])
