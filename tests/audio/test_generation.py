"""Clips are the same alone, in a batch, in chunks, after a pause on disk, and natively as in PyTorch."""

import pytest
import torch
from ssm_kernels import native_build

from audio import AudioError, Draw, Generator, Quantizer, SaShiMi, preset, stream
from ssmcore.engine.weights import save_weights

RATE = 8000
BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")),
    "torch",
]
DRAWS = [Draw(), Draw(temperature=0.8, top_k=60, top_p=0.9)]


def model(seed=0, **changes):
    torch.manual_seed(seed)
    made = SaShiMi(preset("fsdd_small", layers=1, d_model=16, labels=(3, 2), **changes))
    with torch.no_grad():
        made.head.weight.mul_(4)
    return made


@pytest.fixture
def make():
    return lambda backend, **options: Generator(model(), Quantizer(), RATE, backend=backend, **options)


PROMPT = torch.randint(256, (37,), generator=torch.Generator().manual_seed(5))
LABEL = torch.tensor([[1, -1]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_a_clip_is_its_seed(make, backend, draw, tmp_path):
    generator = make(backend, threads=2)
    together = generator.start([4, 9, 4], label=LABEL, prompt=PROMPT).advance(60, draw).tokens
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    alone = generator.start([9], label=LABEL, prompt=PROMPT)
    chunks = [alone.advance(n, draw).tokens for n in (1, 22)]
    assert alone.positions == [23]
    alone.save(tmp_path / "pause.session")
    resumed = make(backend).resume(tmp_path / "pause.session")
    chunks.append(resumed.advance(37, draw).tokens)
    assert torch.equal(torch.cat(chunks, 1)[0], together[1])


@pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_native_clips_are_torchs(make, draw):
    made = [make(backend).start([1, 2], prompt=PROMPT).advance(80, draw) for backend in ("native", "torch")]
    assert torch.equal(made[0].tokens, made[1].tokens)
    torch.testing.assert_close(made[0].log_likelihood, made[1].log_likelihood, rtol=0, atol=1e-4)


@pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")
def test_a_session_goes_on_with_another_backend(make, tmp_path):
    """Not bit for bit, but from the same memory: the likelihood of the same continuation agrees."""
    session = make("native").start([1], prompt=PROMPT)
    session.advance(21)
    session.save(tmp_path / "pause.session")
    given = torch.randint(256, (1, 30), generator=torch.Generator().manual_seed(6))
    want = session.score(given)
    for generator in (make("torch"), make("native", weights="float32")):
        got = generator.resume(tmp_path / "pause.session").score(given)
        torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_is_what_was_heard(make, backend):
    """Prefilled in parallel or fed sample by sample, long or short or absent."""
    generator = make(backend)
    for length in (0, 1, 4, 16, 37):
        prompt = PROMPT[:length]
        given = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(7))
        want = generator.start([0], label=LABEL)
        if length:
            want.score(prompt[None])
        got = generator.start([0], label=LABEL, prompt=prompt if length else None).score(given)
        torch.testing.assert_close(got.logits, want.score(given).logits, rtol=0, atol=1e-4)


def test_clips_may_have_prompts_of_different_lengths(make):
    generator = make("auto")
    prompts = [PROMPT[:5], PROMPT, PROMPT[:16]]
    together = generator.start([1, 2, 3], prompt=prompts).advance(40).tokens
    for i, prompt in enumerate(prompts):
        assert torch.equal(generator.start([i + 1], prompt=prompt).advance(40).tokens[0], together[i])


def test_a_long_prompt_is_fed_in_pieces(make, monkeypatch):
    whole = make("auto").start([3], prompt=PROMPT).advance(20)
    monkeypatch.setattr("audio.generation.PREFILL", 10)
    pieces = make("auto").start([3], prompt=PROMPT).advance(20)
    torch.testing.assert_close(pieces.log_likelihood, whole.log_likelihood, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_likelihood_is_the_models(make, backend):
    generator = make(backend)
    made = generator.start([1, 2], label=LABEL).advance(50, Draw(temperature=0.5))
    fed = torch.cat([torch.full((2, 1), 128), made.tokens[:, :-1]], 1)
    with torch.no_grad():
        logits, _ = generator.model(fed, label=LABEL.expand(2, -1))
    want = logits.log_softmax(-1).gather(2, made.tokens[..., None])[..., 0]
    torch.testing.assert_close(made.log_likelihood, want, rtol=0, atol=1e-4)


def test_a_stream_is_the_clip_in_chunks_and_can_be_left(make):
    generator = make("auto")
    chunks = list(stream(generator, [1, 2], seconds=0.0125, chunk_seconds=0.003, label=LABEL))
    assert [c.shape for c in chunks] == [(2, 24)] * 4 + [(2, 4)]
    assert all(c.dtype == torch.float32 for c in chunks)
    tokens = generator.start([1, 2], label=LABEL).advance(100).tokens
    assert torch.equal(torch.cat(chunks, 1), generator.quantizer.decode(tokens))
    session = generator.start([1, 2], label=LABEL)
    running = stream(generator, [], seconds=1, chunk_seconds=0.003, session=session)
    next(running)
    running.close()
    assert session.positions == [24, 24]
    rest = torch.cat(list(stream(generator, [], seconds=76 / RATE, session=session)), 1)
    assert torch.equal(rest, torch.cat(chunks, 1)[:, 24:])


def test_fingerprints_tell_models_apart(make):
    one = make("torch")
    assert one.fingerprint == make("torch").fingerprint
    assert one.fingerprint != Generator(model(seed=1), Quantizer(), RATE, backend="torch").fingerprint


def test_bad_input_is_refused(make, tmp_path):
    generator = make("torch")
    for seeds in ([], [-1], [2**63]):
        with pytest.raises(ValueError, match="seeds"):
            generator.start(seeds)
    with pytest.raises(ValueError, match="2 prompts"):
        generator.start([1], prompt=[PROMPT, PROMPT])
    with pytest.raises(ValueError, match="shape"):
        generator.start([1], prompt=PROMPT[None])
    with pytest.raises(ValueError, match="expected 0 to 255"):
        generator.start([1], prompt=PROMPT + 300)
    with pytest.raises(ValueError, match="above 0"):
        next(stream(generator, [1], seconds=0))
    with pytest.raises(ValueError, match="expected int64"):
        generator.start([1]).score(torch.zeros(2, 3))
    with pytest.raises(AudioError, match="levels"):
        Generator(model(), Quantizer(bits=4), RATE)
    with pytest.raises(AudioError, match="expected one of auto"):
        make("gpu")


def test_sessions_that_do_not_fit_are_refused(make, tmp_path):
    generator = make("torch")
    with pytest.raises(AudioError, match="no session"):
        generator.resume(tmp_path / "absent.session")
    save_weights(tmp_path / "other.session", {"x": torch.zeros(1)}, {"kind": "audio"})
    with pytest.raises(AudioError, match="no session"):
        generator.resume(tmp_path / "other.session")
    generator.start([1]).save(tmp_path / "mine.session")
    other = Generator(model(seed=1), Quantizer(), RATE, backend="torch")
    with pytest.raises(AudioError, match="another model"):
        other.resume(tmp_path / "mine.session")
    with pytest.raises(AudioError, match="cannot be written"):
        generator.start([1]).save(tmp_path / "no" / "folder" / "x.session")


def test_a_model_that_cannot_be_packed_steps_in_torch():
    torch.manual_seed(0)
    tiers = {"tiers": ("attention/mlp",), "mixers": {"attention": {"window": 8}, "mlp": {"expand": 1.0}}}
    attention = SaShiMi(preset("fsdd_small", layers=1, d_model=16, **tiers))
    generator = Generator(attention, Quantizer(), RATE)
    assert generator.backend == "torch"
    assert generator.start([1]).advance(20).tokens.shape == (1, 20)
    with pytest.raises(AudioError, match=r"cannot run this model|compiler"):
        Generator(attention, Quantizer(), RATE, backend="native")
