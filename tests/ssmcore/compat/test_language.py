"""The language model: transformers' models with the same weights, files there and back, how tokens are drawn."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssmcore.compat import Block, InferenceParams, Mamba, MambaConfig, MambaLMHeadModel
from ssmcore.compat.block import GatedMLP
from ssmcore.compat.generation import decode, sample
from ssmcore.compat.norm import RMSNorm

SIZES = dict(d_model=32, n_layer=2, vocab_size=61)
LAYERS = {
    "mamba": dict(layer="Mamba1", d_state=8),
    "mamba2": dict(layer="Mamba2", d_state=16, headdim=16, ngroups=2),
}


def model(kind="mamba", **more):
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(**SIZES, ssm_cfg=LAYERS[kind], **more))


def tokens(l=12):
    return torch.randint(3, 61, (2, l), generator=torch.Generator().manual_seed(1))


def theirs(kind, ours):
    """transformers' model with our weights: its names differ in one place."""
    transformers = pytest.importorskip("transformers", minversion="5")
    common = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    common["tie_word_embeddings"] = True
    if kind == "mamba":
        made = transformers.MambaForCausalLM(transformers.MambaConfig(**common, state_size=8))
    else:
        more = dict(state_size=16, num_heads=4, head_dim=16, n_groups=2, chunk_size=8)
        made = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**common, **more))
    made.load_state_dict({k.replace("embedding.", "embeddings."): v for k, v in ours.state_dict().items()})
    return made.eval()


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_logits_and_greedy_tokens_are_those_of_transformers(kind):
    ours, ids = model(kind), tokens()
    other = theirs(kind, ours)
    torch.testing.assert_close(ours(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-5)
    expected = other.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    made = ours.generate(ids, 20, return_dict_in_generate=True, output_scores=True, cg=True)
    assert torch.equal(made.sequences, expected)
    assert len(made.scores) == 8
    whole = ours(made.sequences).logits
    torch.testing.assert_close(torch.stack(made.scores, 1), whole[:, 11:19], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("more", [dict(d_intermediate=48), dict(fused_add_norm=False), dict(rms_norm=False)])
def test_forms_of_the_block_learn(kind, more):
    ours = model(kind, **more)
    out = ours(tokens(), num_last_tokens=3)
    assert out.logits.shape == (2, 3, 64)
    out.logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in ours.parameters())
    plain = model(kind, **{**more, "fused_add_norm": not more.get("fused_add_norm", True)})
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(plain(tokens()).logits[:, -3:], out.logits, rtol=1e-4, atol=1e-5)


def test_names_of_parameters():
    names = set(model(d_intermediate=8).state_dict())
    assert {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight"} <= names
    block = {name.removeprefix("backbone.layers.1.") for name in names if name.startswith("backbone.layers.1.")}
    mixer = {name for name in block if name.startswith("mixer.")}
    assert block - mixer == {"norm.weight", "norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    assert {f"mixer.{name}" for name in Mamba(8).state_dict()} == mixer


def test_first_weights():
    ours = model(d_intermediate=128)
    bound = 1 / math.sqrt(64) / math.sqrt(2 * 2)  # Kaiming's with a = sqrt(5), two residuals a layer
    largest = ours.backbone.layers[1].mixer.out_proj.weight.abs().max()
    assert 0.9 * bound < largest <= bound
    assert abs(ours.backbone.embedding.weight.std() - 0.02) < 2e-3
    assert ours.lm_head.weight is ours.backbone.embedding.weight
    assert model(tie_embeddings=False).lm_head.weight is not ours.backbone.embedding.weight


@pytest.mark.parametrize("form", ["pytorch", "safetensors"])
def test_files_there_and_back(form, tmp_path):
    ours = model("mamba2")
    ours.save_pretrained(tmp_path / "model")
    if form == "safetensors":
        from safetensors.torch import save_file

        (tmp_path / "model/pytorch_model.bin").unlink()
        weights = ours.state_dict()
        save_file({k: v for k, v in weights.items() if k != "lm_head.weight"}, tmp_path / "model/model.safetensors")
    back = MambaLMHeadModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert back.config == ours.config
    assert torch.equal(back(tokens()).logits, ours(tokens()).logits)
    with pytest.raises(FileNotFoundError, match=r"has none of config\.json"):
        MambaLMHeadModel.from_pretrained(tmp_path)


class TestDrawing:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 4.0, 3.9]]).log()

    def often(self, **how):
        torch.manual_seed(0)
        many = sample(self.logits.repeat(4000, 1), **how).view(-1, 2)
        return torch.stack([(many == i).float().mean(0) for i in range(4)], 1)

    def test_greedy(self):
        assert sample(self.logits).tolist() == [0, 2]

    def test_all_of_them(self):
        torch.testing.assert_close(self.often(top_k=0)[0], torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=0.03, rtol=0)
        sharp = self.often(top_k=0, temperature=0.5)[0]
        torch.testing.assert_close(sharp, torch.tensor([16.0, 9, 4, 1]) / 30, atol=0.03, rtol=0)

    @pytest.mark.parametrize("how", [dict(top_k=2), dict(top_k=0, top_p=0.6), dict(top_k=0, min_p=0.6)])
    def test_the_two_likeliest(self, how):
        often = self.often(**how)
        assert (often[0, 2:] == 0).all()
        assert (often[1, :2] == 0).all()
        torch.testing.assert_close(often[0, :2], torch.tensor([4 / 7, 3 / 7]), atol=0.03, rtol=0)

    def test_top_k_and_top_p_together(self):
        assert self.often(top_k=3, top_p=0.4)[0, 0] == 1

    def test_bounds(self):
        with pytest.raises(ValueError, match=r"top_p=1.5, expected 0 to 1"):
            sample(self.logits, top_k=0, top_p=1.5)


class TestDecoding:
    class Counter(nn.Module):
        """The likeliest token is the last one plus one, of 8; the next likeliest that plus two."""

        def forward(self, ids, position_ids, inference_params, num_last_tokens):
            assert (inference_params.seqlen_offset == 0) == (ids.shape[1] > 1)
            nearly = F.one_hot((ids[:, -1:] + 2) % 8, 8)
            logits = 2.0 * F.one_hot((ids[:, -1:] + 1) % 8, 8) + nearly + 0.1
            return type("Output", (), {"logits": logits})

    def run(self, **how):
        return decode(torch.tensor([[0, 1], [4, 5]]), self.Counter(), 6, **how).sequences.tolist()

    def test_until_the_end(self):
        assert self.run() == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 0, 1]]

    def test_until_all_rows_have_ended(self):
        ids = torch.tensor([[0, 1], [0, 1]])
        assert decode(ids, self.Counter(), 6, eos_token_id=3).sequences.tolist() == [[0, 1, 2, 3]] * 2

    def test_a_teacher_and_a_smaller_vocabulary(self):
        teacher = torch.tensor([[0, 1, 5, 5], [4, 5, 0, 0]])
        assert self.run(teacher_outputs=teacher) == [[0, 1, 5, 5, 6, 7], [4, 5, 0, 0, 1, 2]]
        assert self.run(vocab_size=6)[0] == [0, 1, 2, 3, 4, 5]
        assert max(self.run(vocab_size=6)[1]) < 6

    def test_repetition_costs(self):
        """After 1 the likeliest is 2, which was there before and then costs; 3 was not, and is taken."""
        ids = torch.tensor([[2, 1]])
        assert decode(ids, self.Counter(), 3, repetition_penalty=1.5).sequences.tolist() == [[2, 1, 2]]
        assert decode(ids, self.Counter(), 3, repetition_penalty=5.0).sequences.tolist() == [[2, 1, 3]]

    def test_a_streamer_and_the_time(self, capsys):
        class Streamer(list):
            def put(self, ids):
                self.append(ids.tolist())

            def end(self):
                self.append("end")

        seen = Streamer()
        self.run(streamer=seen, enable_timing=True)
        assert seen == [[[0, 1], [4, 5]], [[2], [6]], [[3], [7]], [[4], [0]], [[5], [1]], "end"]
        assert "Prompt processing + decoding time" in capsys.readouterr().out


def test_states_that_were_made_beforehand():
    ours, ids = model("mamba2"), tokens(5)
    states = ours.allocate_inference_cache(2, 5, dtype=torch.float32, layer="not used")
    params = InferenceParams(5, 2, key_value_memory_dict=states)
    out = ours(ids, inference_params=params)
    torch.testing.assert_close(out.logits, ours(ids).logits)
    assert states[1][1].abs().sum() > 0


def test_bad_configurations():
    with pytest.raises(ValueError, match="block 1 is attention"):
        model(attn_layer_idx=[1])
    with pytest.raises(ValueError, match="'Mamba9', expected one of Mamba1, Mamba2"):
        MambaLMHeadModel(MambaConfig(**SIZES, ssm_cfg=dict(layer="Mamba9")))
    with pytest.raises(ValueError, match="fused_add_norm needs LayerNorm or RMSNorm, got Identity"):
        Block(8, Mamba, norm_cls=lambda d: nn.Identity(), fused_add_norm=True)


def test_gated_mlp_rounds_its_width_up():
    mlp = GatedMLP(12, hidden_features=130, multiple_of=64)
    assert mlp.fc1.weight.shape == (2 * 192, 12)
    x = torch.randn(2, 3, 12)
    y, gate = mlp.fc1(x).chunk(2, -1)
    torch.testing.assert_close(mlp(x), mlp.fc2(y * F.silu(gate)))
    assert RMSNorm(4, dropout_p=0.5).drop.p == 0.5
