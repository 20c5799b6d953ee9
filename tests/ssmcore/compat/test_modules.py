"""Mamba and Mamba2 load published state dicts, and generate as upstream's users write it."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.compat import InferenceParams, Mamba, Mamba2
from ssmcore.compat.mamba2_simple import Mamba2Simple

MAMBA_KEYS = {"A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight",
              "dt_proj.bias", "out_proj.weight"}  # fmt: skip
MAMBA2_KEYS = {"A_log", "D", "dt_bias", "in_proj.weight", "conv1d.weight", "conv1d.bias", "norm.weight",
               "out_proj.weight"}  # fmt: skip
MODULES = {
    "mamba": lambda **more: Mamba(16, d_state=4, **more),
    "mamba2": lambda **more: Mamba2(16, d_state=8, headdim=8, ngroups=2, chunk_size=4, **more),
    "mamba2_side": lambda **more: Mamba2(
        16, d_state=8, headdim=8, d_ssm=16, D_has_hdim=True, rmsnorm=False, dt_limit=(0.01, 0.05), **more
    ),
    "mamba2_norm_first": lambda **more: Mamba2(16, d_state=8, headdim=8, norm_before_gate=True, **more),
}


def test_names_and_shapes_of_parameters():
    mamba, mamba2 = Mamba(16), Mamba2(16, headdim=8)
    assert mamba.state_dict().keys() == MAMBA_KEYS
    assert mamba2.state_dict().keys() == MAMBA2_KEYS
    assert mamba.conv1d.weight.shape == (32, 1, 4)
    assert mamba.x_proj.weight.shape == (1 + 32, 32)
    assert mamba2.in_proj.weight.shape == (2 * 32 + 2 * 128 + 4, 16)
    assert mamba2.conv1d.weight.shape == (32 + 256, 1, 4)
    assert mamba.A_log._no_weight_decay
    assert mamba.dt_proj.bias._no_reinit


@pytest.mark.parametrize(("kind", "options"), [("mamba", dict(d_state=4)), ("mamba2", dict(d_state=8, headdim=8))])
def test_the_mixers_of_the_suite_have_the_same_weights(kind, options):
    module = {"mamba": Mamba, "mamba2": Mamba2}[kind](16, **options)
    mixer = create_mixer(kind, 16, **options)
    mixer.load_state_dict(module.state_dict())
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(module(x), mixer(x)[0])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("prompt", [1, 2, 7])
@torch.no_grad()
def test_prompt_and_steps_are_the_whole(name, prompt):
    module, x = MODULES[name](layer_idx=3), torch.randn(2, 11, 16)
    whole = module(x)
    params = InferenceParams(max_seqlen=11, max_batch_size=2)
    outputs = [module(x[:, :prompt], inference_params=params)]
    params.seqlen_offset += prompt
    for t in range(prompt, 11):
        outputs.append(module(x[:, t : t + 1], inference_params=params))
        params.seqlen_offset += 1
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-5)
    assert set(params.key_value_memory_dict) == {3}
    params.reset(11, 2)
    torch.testing.assert_close(module(x, inference_params=params), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@torch.no_grad()
def test_steps_by_hand(name):
    module, x = MODULES[name](), torch.randn(2, 6, 16)
    conv_state, ssm_state = module.allocate_inference_cache(2, 6)
    for t in range(6):
        y, again, _ = module.step(x[:, t : t + 1], conv_state, ssm_state)
        assert again is conv_state
    torch.testing.assert_close(y, module(x)[:, -1:], rtol=1e-4, atol=1e-5)


def test_packed_sequences_and_flat_tokens():
    module, x = MODULES["mamba2"](), torch.randn(1, 9, 16)
    separate = torch.cat([module(x[:, :4]), module(x[:, 4:])], 1)
    torch.testing.assert_close(module(x, seq_idx=torch.tensor([[0] * 4 + [1] * 5])), separate)
    torch.testing.assert_close(module(x, cu_seqlens=torch.tensor([0, 4, 9])), separate)
    both = torch.randn(2, 5, 16)
    torch.testing.assert_close(module(both.flatten(0, 1), seqlen=5), module(both).flatten(0, 1))


@torch.no_grad()
def test_prompts_that_are_packed():
    """Three prompts in a row, one of them empty; then a token for each."""
    module, x = MODULES["mamba2"](layer_idx=0), torch.randn(1, 9, 16)
    params = InferenceParams(max_seqlen=10, max_batch_size=3)
    y = module(x, cu_seqlens=torch.tensor([0, 4, 4, 9]), inference_params=params)
    torch.testing.assert_close(y, torch.cat([module(x[:, :4]), module(x[:, 4:])], 1))
    params.seqlen_offset, new = 5, torch.randn(3, 1, 16)
    y = module(new, inference_params=params)
    for i, before in enumerate((x[:, :4], x[:, :0], x[:, 4:])):
        expected = module(torch.cat([before, new[i : i + 1]], 1))[:, -1:]
        torch.testing.assert_close(y[i : i + 1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="packed sequences are given by cu_seqlens"):
        module(x, seq_idx=torch.zeros(1, 9, dtype=torch.int32), inference_params=params)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_states_are_allocated_and_zeroed_as_upstream(name):
    module, params = MODULES[name](layer_idx=1), InferenceParams(8, 2)
    states = module.allocate_inference_cache(2, 8, dtype=torch.float64, something="else")
    assert {t.dtype for t in states} == {torch.float64}
    params.key_value_memory_dict[1] = tuple(t + 1 for t in states)
    assert all((t == 1).all() for t in module._get_states_from_cache(params, 2))
    assert all((t == 0).all() for t in module._get_states_from_cache(params, 2, initialize_states=True))


def test_simple_mamba2_has_a_first_state():
    options = dict(d_state=8, headdim=8, ngroups=2)
    simple, x = Mamba2Simple(16, learnable_init_states=True, **options), torch.randn(2, 9, 16)
    module = Mamba2(16, **options)
    module.load_state_dict({k: v for k, v in simple.state_dict().items() if k != "init_states"})
    torch.testing.assert_close(simple(x), module(x))
    assert simple.init_states._no_weight_decay
    torch.nn.init.normal_(simple.init_states)
    y = simple(x, seq_idx=torch.tensor([[0] * 4 + [1] * 5] * 2))
    torch.testing.assert_close(y[:, :4], simple(x[:, :4]))
    torch.testing.assert_close(y[:, 4:], module(x[:, 4:]))
    assert (simple(x) - module(x)).abs().max() > 1e-3
    simple(x).sum().backward()
    assert simple.init_states.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="activation='relu'"):
        Mamba2Simple(16, headdim=8, activation="relu")


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_learns(name):
    module = MODULES[name]()
    module(torch.randn(2, 5, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_bfloat16(name):
    module, x = MODULES[name](dtype=torch.bfloat16), torch.randn(2, 5, 16, dtype=torch.bfloat16)
    y = module(x)
    assert y.dtype == torch.bfloat16
    assert module.D.dtype == torch.float32
    module(x).sum().backward()
    wide = MODULES[name]()
    wide.load_state_dict(module.state_dict())
    torch.testing.assert_close(y.float(), wide(x.float()), rtol=5e-2, atol=2e-2)


def test_bad_input():
    with pytest.raises(ValueError, match="dt_init='zeros'"):
        Mamba(16, dt_init="zeros")
    with pytest.raises(ValueError, match="32 channels, heads of 64 and 1 groups do not divide"):
        Mamba2(16)
    with pytest.raises(ValueError, match="process_group"):
        Mamba2(16, headdim=8, process_group=object())
    for module in (MODULES["mamba"](), MODULES["mamba2"]()):
        with pytest.raises(ValueError, match="needs a layer_idx"):
            module(torch.randn(1, 2, 16), inference_params=InferenceParams(2, 1))
        with pytest.raises(ValueError, match=r"expected one token, \(b, 1, d_model\)"):
            module.step(torch.randn(1, 2, 16), *module.allocate_inference_cache(1, 2))
    module, params = MODULES["mamba"](layer_idx=0), InferenceParams(8, 2)
    module(torch.randn(2, 3, 16), inference_params=params)
    with pytest.raises(ValueError, match="the states hold 2 items, but the input has b=1"):
        module(torch.randn(1, 3, 16), inference_params=params)
