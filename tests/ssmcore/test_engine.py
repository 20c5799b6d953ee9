"""The engine: a resumed run equals an uninterrupted one bit for bit, NaN stops, parameters are grouped."""

import csv
import os
import signal
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

pl = pytest.importorskip("lightning.pytorch")

from ssmcore.engine import (  # noqa: E402
    EpochSampler,
    Interrupted,
    NonFiniteError,
    RunSettings,
    cli,
    cosine_schedule,
    fit,
    guarded,
    load_weights,
    make_loader,
    make_optimizer,
    make_run_dir,
    parameter_groups,
)


class ToyTask(pl.LightningModule):
    """Dropout and shuffling: everything that a careless resume would repeat differently."""

    def __init__(self, steps: int, stop_at: int | None = None, poison_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))
        self.steps, self.stop_at, self.poison_at = steps, stop_at, poison_at
        self.seen: list[float] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(float(x[0, 0]))
        if len(self.seen) - 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.global_step == self.poison_at:
            with torch.no_grad():
                self.model[3].bias.fill_(float("nan"))
        return (self.model(x) - y).square().mean()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", (self.model(x) - y).square().mean(), batch_size=len(x))

    def configure_optimizers(self):
        optimizer = make_optimizer(self.model, 1e-2, 1e-2)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine_schedule(optimizer, self.steps), "interval": "step"},
        }


def run(folder, stop_at=None, poison_at=None, *, epochs=3, workers=0, **settings):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    train = make_loader(data, 8, seed=5, num_workers=workers)
    task = ToyTask(epochs * len(train), stop_at, poison_at)
    folder.mkdir(exist_ok=True)
    options = RunSettings(epochs=epochs, seed=5, monitor="val_loss", accelerator="cpu", note={"a": 1}, **settings)
    outcome = fit(task, train, make_loader(data, 50, seed=0, shuffle=False), options, folder)
    return task, outcome


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    task, outcome = run(folder)
    return folder, task, outcome


# 7 batches an epoch: the first one, inside, the last of an epoch, the first of the next, the very last but one.
@pytest.mark.parametrize("stop_at", [0, 3, 6, 7, 10, 19])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, whole, stop_at):
    folder, task, outcome = whole
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at)
    resumed, again = run(tmp_path)
    for (name, a), b in zip(task.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.seen == task.seen[stop_at + 1 :]
    assert again == outcome
    assert rows(tmp_path) == rows(folder)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("stop_at", [0, 1, 2, 4, 5, 8])
def test_a_stop_waits_for_the_optimiser_when_gradients_accumulate(tmp_path, stop_at):
    """Three batches a step, seven an epoch: no checkpoint holds the gradients of a step that is not done."""
    task, outcome = run(tmp_path / "whole", accumulate=3)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop_at, accumulate=3)
    resumed, again = run(tmp_path / "cut", accumulate=3)
    assert again == outcome
    for name in ("best.safetensors", "last.safetensors", "metrics.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), resumed.model.parameters(), strict=True))


def test_resume_with_workers_equals_uninterrupted(tmp_path, whole):
    with pytest.raises(Interrupted):
        run(tmp_path, 10, workers=1)
    resumed, _ = run(tmp_path, workers=1)
    assert resumed.seen == whole[1].seen[11:]
    assert all(torch.equal(a, b) for a, b in zip(whole[1].model.parameters(), resumed.model.parameters(), strict=True))


def test_a_killed_run_goes_on_from_the_last_periodic_save(tmp_path, whole):
    with pytest.raises(NonFiniteError):  # any crash; the state of two batches after the epoch's start is on disk
        run(tmp_path, poison_at=10, save_every=2)
    resumed, _ = run(tmp_path, save_every=2)
    assert resumed.seen == whole[1].seen[9:]
    assert all(torch.equal(a, b) for a, b in zip(whole[1].model.parameters(), resumed.model.parameters(), strict=True))


def test_finished_run_returns_at_once_and_more_epochs_go_on(tmp_path, whole):
    _, outcome = run(tmp_path, epochs=2)
    task, again = run(tmp_path, epochs=2)
    assert again == outcome
    assert task.seen == []
    task, more = run(tmp_path, epochs=3)
    assert len(task.seen) == 7
    assert more.epochs == 3


def test_run_folder_and_weights(whole):
    folder, task, outcome = whole
    tensors, note = load_weights(folder / "last.safetensors")
    assert note == {"a": 1}
    assert all(torch.equal(tensors[name], value) for name, value in task.model.state_dict().items())
    assert len(rows(folder)) == 3
    assert min(float(row["val_loss"]) for row in rows(folder)) == pytest.approx(outcome.best_score)
    assert list((folder / "tensorboard").glob("events*"))


def test_patience_ends_the_run(tmp_path):
    x = torch.zeros(8, 4)
    data = TensorDataset(x, x[:, :1])
    task = ToyTask(10)
    for p in task.parameters():
        p.requires_grad_(False).zero_()
    task.model[3].bias.requires_grad_(True)
    options = RunSettings(epochs=9, seed=0, monitor="val_loss", patience=2, accelerator="cpu")
    outcome = fit(task, make_loader(data, 8, seed=0), make_loader(data, 8, seed=0, shuffle=False), options, tmp_path)
    assert (outcome.epochs, outcome.best_epoch) == (3, 0)


def test_nan_names_the_tensor_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 10: parameter model.3.bias holds NaN"):
        run(tmp_path, poison_at=10)
    tensors, _ = load_weights(tmp_path / "last.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())


def test_nan_in_an_output_is_found(tmp_path):
    data = TensorDataset(torch.full((8, 4), float("nan")), torch.zeros(8, 1))
    options = RunSettings(epochs=1, seed=0, monitor="val_loss", accelerator="cpu")
    with pytest.raises(NonFiniteError, match=r"output of model.0 \(and batch 0"):
        fit(ToyTask(10), make_loader(data, 8, seed=0), None, options, tmp_path)


def test_sampler_order_depends_on_seed_and_epoch_only():
    a, b = EpochSampler(10, 3), EpochSampler(10, 3)
    list(a)
    a.set_epoch(4)
    b.set_epoch(4)
    assert list(a) == list(b)
    assert sorted(a) == list(range(10))
    assert a.order(4) != a.order(5)
    assert EpochSampler(10, 4).order(4) != a.order(4)


def test_keys_name_the_index_and_a_draw_that_no_other_epoch_has():
    sampler = EpochSampler(10, 3, keyed=True, repeats=2)
    seen = set()
    for epoch in range(3):
        keys = sampler.order(epoch)
        assert len(keys) == 10
        plain = EpochSampler(10, 3).order(epoch)[:5]
        assert [key % 10 for key in keys] == [index for index in plain for _ in range(2)]
        assert not seen & set(keys)
        seen |= set(keys)
    assert len(seen) == 30


def test_only_the_first_process_makes_a_run_folder(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Config:
        lr: float = 0.1

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert make_run_dir(tmp_path, "run", Config()) == tmp_path / "run"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert make_run_dir(tmp_path, "run", Config()) == tmp_path / "run"
    assert make_run_dir(tmp_path, "run", Config()) == tmp_path / "run-2"


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested options."""

    names: tuple[str, ...] = ()
    """Names."""


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Options that take several values."""

    levels: tuple[float, ...] = (0.5,)
    """Levels."""
    columns: tuple[str, ...] | None = None
    """Columns."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""
    one: str = ""
    """A single word."""


def test_a_list_may_come_without_its_brackets(capsys):
    words = ["--levels", "0.1,0.9", "--columns=a", "--inner.names", "x,y", "--one", "a,b"]
    found = cli.parse(Lists, words, prog="p")
    assert found == Lists(levels=(0.1, 0.9), columns=("a",), inner=Inner(names=("x", "y")), one="a,b")
    assert cli.parse(Lists, ["--levels", "[0.1, 0.9]", "--columns", "null"], prog="p").levels == (0.1, 0.9)
    with pytest.raises(SystemExit):
        cli.parse(Lists, ["--levels", "0.1,much"], prog="p")
    assert "--levels: expected" in capsys.readouterr().err


def test_flags_of_inherited_fields_switches_and_words(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Group:
        amp: bool = False
        """Narrow arithmetic."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Group):
        files: tuple[str, ...] = ()
        """Files."""
        lr: float = 0.1
        """Pace."""

        def __post_init__(self):
            if self.lr <= 0:
                raise ValueError(f"lr={self.lr}, expected above 0")

    assert cli.field_docs(Config) == {"amp": "Narrow arithmetic.", "files": "Files.", "lr": "Pace."}
    parsed = cli.parse(Config, ["a", "b", "--amp", "--lr", "2"], prog="p", positional="files")
    assert parsed == Config(amp=True, files=("a", "b"), lr=2.0)
    assert cli.parse(Config, ["--amp", "false", "--lr=3", "a"], prog="p", positional="files").amp is False
    with pytest.raises(SystemExit):
        cli.parse(Config, ["--amp"], prog="p", positional="files")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.parse(Config, ["--lr", "-1", "a"], prog="p", positional="files")
    assert capsys.readouterr().err == "p: lr=-1.0, expected above 0\n"  # what a config refuses is a sentence too


def test_loader_refuses_nonsense():
    with pytest.raises(ValueError, match="0 items in batches of 4"):
        make_loader(TensorDataset(torch.zeros(0, 1)), 4, seed=0)


class Spec:
    def __init__(self, decay, lr_scale):
        self.decay, self.lr_scale = decay, lr_scale


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(3, 3))
        self.proj = nn.Linear(3, 3)

    def param_spec(self):
        return {"A_log": Spec(False, 0.1), "proj.weight": Spec(True, 1.0), "proj.bias": Spec(False, 1.0)}


def test_groups_partition_the_parameters():
    model = nn.ModuleDict({"a": Mixer(), "b": nn.Sequential(Mixer(), nn.LayerNorm(3)), "c": nn.Linear(3, 2)})
    model["c"].bias.requires_grad_(False)
    groups = parameter_groups(model, 1e-3, 0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    kind = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert kind["a.A_log"] == kind["b.0.A_log"] == (pytest.approx(1e-4), 0.0)
    assert kind["a.proj.weight"] == kind["c.weight"] == (1e-3, 0.1)
    assert kind["b.1.weight"] == kind["a.proj.bias"] == (1e-3, 0.0)


def test_groups_name_an_unknown_parameter():
    class Wrong(nn.Linear):
        def param_spec(self):
            return {"wieght": Spec(True, 1.0)}

    with pytest.raises(ValueError, match="names 'wieght'"):
        parameter_groups(nn.Sequential(Wrong(2, 2)), 1e-3, 0.1)


def test_load_weights_refuses_other_files(tmp_path):
    (tmp_path / "x.safetensors").write_text("no")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_weights(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="there is no file"):
        load_weights(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM; the state is saved; go on with: x --resume a"),
        (KeyboardInterrupt(), 130, "stopped; go on with: x --resume a"),
        (NonFiniteError("loss is nan"), 1, "loss is nan (in a)"),
        (KeyError("no such column"), 2, "'no such column'"),
        (OSError(28, "No space left on device", "a/metrics.csv"), 2, "a/metrics.csv: No space left on device"),
    ],
)  # fmt: skip
def test_a_command_ends_in_one_line_and_a_status(raised, status, line, capsys):
    def job():
        raise raised

    assert guarded(job, prog="x", refused=KeyError, run_dir="a") == status
    assert capsys.readouterr().err == f"x: {line}\n"


def test_a_command_keeps_its_own_status_and_our_mistakes_are_seen():
    assert guarded(lambda: 3, prog="x") == 3
    assert guarded(lambda: "done", prog="x") == 0
    with pytest.raises(KeyError):
        guarded(lambda: {}["a"], prog="x")
