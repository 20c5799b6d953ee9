"""A sequence in slices on two and on three processes is scanned as on one, gradients included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ssmcore import context_parallel

ROOT, PROGRAM = Path(__file__).parents[2], Path(__file__).with_name("run_context_parallel.py")


def test_three_processes_and_two_of_them(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    words = [sys.executable, str(PROGRAM), str(tmp_path / "meet")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_is_the_plain_scan(alone):
    x, dt, B = torch.randn(2, 5, 3), torch.rand(2, 5, 3), torch.randn(2, 5, 2)
    A = -torch.rand(3, 2)
    from ssmcore.functional import selective_scan

    torch.testing.assert_close(context_parallel.selective_scan(x, dt, A, B, B), selective_scan(x, dt, A, B, B))
    assert (context_parallel.previous_tokens(x, 3) == 0).all()
    with pytest.raises(ValueError, match="count=6, expected 0 to 5"):
        context_parallel.previous_tokens(x, 6)
    with pytest.raises(ValueError, match="rule='bilinear', expected one of 'euler', 'zoh'"):
        context_parallel.selective_scan(x, dt, A, B, B, rule="bilinear")


def test_no_group_is_named():
    with pytest.raises(ValueError, match="call init_process_group first"):
        context_parallel.selective_scan(*[torch.zeros(1, 2, 3)] * 2, torch.zeros(3, 2), *[torch.zeros(1, 2, 2)] * 2)
