"""A program written for transformers alone; with "ours" as its first word it installs ssmcore.compat beforehand.

It writes logits, gradients and generated tokens of a small random model to the file that its last word names.
"""

import sys

import torch

MODELS = {
    "mamba": ("MambaConfig", "MambaForCausalLM", dict(state_size=8, conv_kernel=4, time_step_rank=2)),
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM",
               dict(state_size=16, num_heads=4, head_dim=16, n_groups=2, chunk_size=8, expand=2)),
    "falcon_mamba": ("FalconMambaConfig", "FalconMambaForCausalLM", dict(state_size=8, time_step_rank=2)),
    "jamba": ("JambaConfig", "JambaForCausalLM",
              dict(mamba_d_state=8, mamba_dt_rank=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
                   num_experts=2, attn_layer_offset=1, attn_layer_period=2, use_mamba_kernels=False)),
    "bamba": ("BambaConfig", "BambaForCausalLM",
              dict(mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=2, mamba_d_state=16, mamba_chunk_size=8,
                   num_attention_heads=4, num_key_value_heads=2, intermediate_size=32, attn_layer_indices=[1])),
    "zamba2": ("Zamba2Config", "Zamba2ForCausalLM",
               dict(mamba_d_state=16, mamba_ngroups=2, n_mamba_heads=4, mamba_headdim=16, chunk_size=8,
                    num_attention_heads=4, num_key_value_heads=4, intermediate_size=32,
                    layers_block_type=["mamba", "hybrid"], num_mem_blocks=1, use_mem_rope=False)),
}  # fmt: skip


def run(kind: str, dtype: torch.dtype) -> dict:
    import transformers

    config_name, model_name, options = MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options
    )
    model = getattr(transformers, model_name)(config).to(dtype)
    tokens = torch.randint(3, 64, (2, 21))
    model.train()
    out = model(tokens, labels=tokens, use_cache=False)
    out.loss.backward()
    result = {"train_logits": out.logits, "gradients": {k: p.grad for k, p in model.named_parameters()}}
    model.eval()
    with torch.no_grad():
        result["logits"] = model(tokens).logits
        result["tokens"] = model.generate(tokens[:, :9], max_new_tokens=12, min_new_tokens=12, do_sample=False)
    return result


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        import ssmcore.compat

        ssmcore.compat.install()
    results = {name: run(*name.split("-")[:1], getattr(torch, name.split("-")[1])) for name in sys.argv[2:-1]}
    torch.save(results, sys.argv[-1])
