"""Steps in fixed memory against the ordinary ones, and that no step waits for the device. Graphs need a GPU."""

import pytest
import torch
from ssm_kernels.step_network.reference import Draw, draw_token, draw_tokens, uniform, uniforms
from torch._subclasses.fake_tensor import FakeTensorMode

from audio import Generator, Quantizer
from audio.models.graphed import GraphedSteps
from tests.audio.models.cases import build, clip


@pytest.mark.parametrize(("name", "options"), [("fsdd_small", {"labels": (3,)}), ("mamba_youtubemix", {"d_model": 8})])
@torch.no_grad()
def test_fixed_memory_equals_ordinary_steps(name, options):
    model = build(name, **options)
    label = torch.tensor([[1]]) if model.config.labels else None
    session = Generator(model, Quantizer(), 8000, backend="torch").start(
        [3, 9], label=label, prompt=clip(model, 1, 7)[0]
    )
    states, newest = [c.state for c in session._clips], [c.newest for c in session._clips]
    draw = Draw(temperature=0.9, top_p=0.95)
    graphed = GraphedSteps(model, states, newest, [3, 9], draw)
    want = session.advance(40, draw)
    parts = [graphed.advance(n) for n in (1, 21, 18)]
    assert torch.equal(torch.cat([p.tokens for p in parts], 1), want.tokens)
    got = torch.cat([p.log_likelihood for p in parts], 1)
    torch.testing.assert_close(got, want.log_likelihood, rtol=0, atol=1e-4)
    left = graphed.state
    more = clip(model, 2, 5)
    after = torch.cat([model(more[i : i + 1], session.clips()[i].state)[0] for i in range(2)])
    torch.testing.assert_close(model(more, left)[0], after, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["sashimi", "sashimi_s4d_unet", "mamba_sc09", "mamba_youtubemix", "mamba_s4_mamba"])
@torch.no_grad()
def test_a_step_never_waits_for_the_device(name):
    """A CUDA graph cannot hold a step that reads a number back: on tensors without numbers such a step raises."""
    model = build(name, d_model=8)
    state, tokens = model.init_state(2), torch.zeros(2, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        token = fake.from_tensor(tokens)
        for _ in range(5):
            logits, state = model.advance(token[:, None], state, state["label"])
            token = draw_tokens(logits[:, 0], Draw(top_k=5, top_p=0.9), token, token)
        assert token.shape == (2,)
        with pytest.raises(Exception, match="data|item|scalar"):
            int(token[0])


@pytest.mark.parametrize(
    "draw", [Draw(), Draw(temperature=0), Draw(top_k=7), Draw(temperature=1.7, top_k=90, top_p=0.9)]
)
def test_many_draws_are_the_single_ones(draw):
    logits = 2 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    seeds, positions = torch.arange(50) * 2**56 + 5, torch.arange(50) * 977
    got = draw_tokens(logits, draw, seeds, positions).tolist()
    assert got == [draw_token(row, draw, int(s), int(p)) for row, s, p in zip(logits, seeds, positions, strict=True)]
    assert uniforms(seeds, positions).tolist() == [
        uniform(int(s), int(p)) for s, p in zip(seeds, positions, strict=True)
    ]


def test_clips_at_different_places_are_refused():
    model = build("fsdd_small")
    generator = Generator(model, Quantizer(), 8000, backend="torch")
    clips = generator.start([1, 2], prompt=[clip(model, 1, 3)[0], clip(model, 1, 5)[0]])._clips
    with pytest.raises(ValueError, match="different places"):
        GraphedSteps(model, [c.state for c in clips], [0, 0], [1, 2])
