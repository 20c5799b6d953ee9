"""Published sizes are not only written down: each protocol is built whole and takes steps. Minutes: slow tier."""

import os

import pytest
import torch

from apps.lab.bytes import config as byte_sizes
from apps.lab.bytes.config import BytesConfig
from apps.lab.bytes.model import ByteModel
from apps.lab.bytes.task import ByteTask
from apps.lab.config import LabConfig
from apps.lab.experiment import run
from apps.lab.lra.config import PRESETS, TASKS, LraConfig, settings
from apps.lab.lra.data import Data
from apps.lab.lra.model import LraModel
from apps.lab.lra.task import LraTask
from apps.lab.protocols import TASKS as LAB_TASKS
from apps.lab.protocols import task

LONGEST = {"listops": 2048, "text": 4096, "retrieval": 4000, "image": 1024, "pathfinder": 1024, "pathx": 128**2}
"""Tokens of a sequence."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LAB_TASKS)
def test_published_protocols_of_the_tasks_take_steps(name, tmp_path):
    """Data, model and batch as published; two batches in place of all, and no question about longer sequences."""
    how = task(name, "paper").training
    examples = None if how.examples is None else 2 * how.batch_size
    config = LabConfig(
        task=(name,), preset="paper", mixer="mamba", steps=2, steps_per_epoch=2, examples=examples,
        fresh=how.batch_size, longer=(1,), output=str(tmp_path),
    )  # fmt: skip
    result = run(config, silent=True)
    assert result.steps == 2
    assert result.length == task(name, "paper").length
    assert result.scores["1"] <= 1
    rows = (next(tmp_path.iterdir()) / "metrics.csv").read_text()
    assert "nan" not in rows


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_published_settings_of_long_range_arena_take_a_step(preset, name):
    """Model and length as published; two sequences a batch, for whole batches keep up to 20 GB (S4 on retrieval)."""
    how = settings(LraConfig(task=(name,), preset=preset))
    pixels, pairs = name in ("image", "pathfinder", "pathx"), name == "retrieval"
    data = Data(train=[], val=[], test=[], tokens=0 if pixels else 100, classes=10, pairs=pairs)
    torch.manual_seed(0)
    model = LraModel(data, how)
    length = min(how.length, LONGEST[name]) if not pixels else LONGEST[name]
    rows = 4 if pairs else 2
    x = torch.randn(rows, length, 1) if pixels else torch.randint(100, (rows, length))
    mask = torch.arange(length) < torch.full((rows, 1), length)
    if not pixels:
        mask[1, length // 2 :] = False
    lra_task = LraTask(model, how, 2)
    optimizer = lra_task.configure_optimizers()["optimizer"]
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    loss = lra_task.training_step((x, mask, torch.randint(10, (2,))), 0)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not [key for key, p in model.named_parameters() if torch.equal(p, before[key])]


@pytest.mark.slow
def test_the_smaller_published_byte_model_takes_a_step():
    """MambaByte-353M: 5.6 GB of weights, gradients and averages. Its batches of 48 times 8192 bytes want a GPU."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if available < 9 << 30:
        pytest.skip(f"needs 9 GB of memory, {available / 2**30:.1f} are free")
    how = byte_sizes.sizes(BytesConfig(preset="mambabyte_353m"))
    torch.manual_seed(0)
    model = ByteModel(how.mixer, {}, d_model=how.d_model, num_layers=how.num_layers, channel_mixer=how.channel_mixer)
    byte_task = ByteTask(model, how, torch.zeros(8, dtype=torch.uint8).numpy())
    optimizer = byte_task.configure_optimizers()["optimizer"]
    for _ in range(2):
        optimizer.zero_grad()
        loss = byte_task.training_step(torch.randint(256, (1, 65)), 0)
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
