"""mamba_ssm's language model: an embedding, blocks of Mamba or Mamba-2, a norm and a head, as it is published.

Its state dicts load, from a folder or from the Hugging Face hub, and it generates. Hybrids with attention are not here.
For new work there is `ssmcore.Stack`. Source: Gu & Dao 2023, Mamba, sec. 3.4 and 4.2; Dao & Gu 2024, sec. 9.3.
"""

import json
import math
from collections import namedtuple
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .block import Block, GatedMLP, add_norm
from .generation import GenerationMixin
from .inference import InferenceParams
from .mamba import Mamba
from .mamba2 import Mamba2
from .norm import RMSNorm

Output = namedtuple("CausalLMOutput", ["logits"])
MIXERS = {"Mamba1": Mamba, "Mamba2": Mamba2}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass
class MambaConfig:
    """A model's sizes, as its config.json has them."""

    d_model: int = 2560
    """Channels of the residual stream."""
    d_intermediate: int = 0
    """Hidden channels of an MLP after each mixer; 0 is none."""
    n_layer: int = 64
    """Blocks."""
    vocab_size: int = 50277
    """Tokens, filled up to a multiple of pad_vocab_size_multiple."""
    ssm_cfg: dict = field(default_factory=dict)
    """The mixer's arguments; "layer" is "Mamba1" or "Mamba2"."""
    attn_layer_idx: list = field(default_factory=list)
    """Blocks with attention; these are not offered."""
    attn_cfg: dict = field(default_factory=dict)
    """Their arguments."""
    rms_norm: bool = True
    """RMSNorm, else LayerNorm."""
    residual_in_fp32: bool = True
    """Keep the residual stream in float32."""
    fused_add_norm: bool = True
    """Sum and norm in float32 whatever the dtype."""
    pad_vocab_size_multiple: int = 8
    """See vocab_size."""
    tie_embeddings: bool = True
    """The head's weight is the embedding's."""


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: dict | None = None,
    attn_layer_idx: list | None = None,
    attn_cfg: dict | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """One block of the model; its fields are MambaConfig's.

    Raises:
        ValueError: The layer is neither "Mamba1" nor "Mamba2", or attention.
    """
    if layer_idx in (attn_layer_idx or ()):
        raise ValueError(f"create_block: block {layer_idx} is attention (attn_layer_idx), which is not offered here")
    made = {"device": device, "dtype": dtype}
    options = dict(ssm_cfg or {})
    kind = options.pop("layer", "Mamba1")
    if kind not in MIXERS:
        raise ValueError(f"create_block: ssm_cfg['layer']={kind!r}, expected one of {', '.join(MIXERS)}")
    mixer = partial(MIXERS[kind], layer_idx=layer_idx, **options, **made)
    norm = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **made)
    mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **made)
    block = Block(d_model, mixer, mlp if d_intermediate else nn.Identity, norm, fused_add_norm, residual_in_fp32)
    setattr(block, "layer_idx", layer_idx)  # noqa: B010
    return block


class MixerModel(nn.Module):
    """The model without its head, tokens (b, l) to (b, l, d_model). Raises as `create_block`."""

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int,
        vocab_size: int,
        ssm_cfg: dict | None = None,
        attn_layer_idx: list | None = None,
        attn_cfg: dict | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **made)
        sizes = (d_model, d_intermediate, ssm_cfg, attn_layer_idx, attn_cfg, norm_epsilon, rms_norm)
        self.layers = nn.ModuleList(
            create_block(*sizes, residual_in_fp32, fused_add_norm, layer_idx=i, **made) for i in range(n_layer)
        )
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **made)
        initialise(self, n_layer, **{"n_residuals_per_layer": 2 if d_intermediate else 1, **(initializer_cfg or {})})

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype=None, **kwargs: object) -> dict:
        """Each block's states, (b, ...), by its number."""
        layers: Iterable[Block] = self.layers  # pyright: ignore[reportAssignmentType]
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
            for i, layer in enumerate(layers)
        }

    def forward(
        self, input_ids: Tensor, inference_params: InferenceParams | None = None, **mixer_kwargs: object
    ) -> Tensor:
        """Tokens, shape (b, l), to (b, l, d_model); the rest is for the mixers. Raises as they do."""
        x, residual = self.embedding(input_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params=inference_params, **mixer_kwargs)
        if self.fused_add_norm:
            return add_norm(self.norm_f, x, residual, self.residual_in_fp32)[0]
        total = x if residual is None else x + residual
        return self.norm_f(total.to(self.norm_f.weight.dtype))


@torch.no_grad()
def initialise(
    model: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Draw embeddings anew, biases to zero, and what is added to the residual stream smaller the deeper the model is.

    Source: Radford et al. 2019, GPT-2, sec. 2.3.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=initializer_range)
        elif isinstance(module, nn.Linear) and module.bias is not None and not hasattr(module.bias, "_no_reinit"):
            module.bias.zero_()
    for name, weight in model.named_parameters():
        if rescale_prenorm_residual and name.endswith(("out_proj.weight", "fc2.weight")):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            weight.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """The language model, tokens (b, l) to logits (b, l, vocabulary). Raises as `create_block`."""

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: dict | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config, multiple = config, config.pad_vocab_size_multiple
        vocabulary = -(-config.vocab_size // multiple) * multiple
        self.backbone = MixerModel(
            config.d_model, config.n_layer, config.d_intermediate, vocabulary, config.ssm_cfg, config.attn_layer_idx,
            config.attn_cfg, rms_norm=config.rms_norm, initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm, residual_in_fp32=config.residual_in_fp32, device=device, dtype=dtype,
        )  # fmt: skip
        self.lm_head = nn.Linear(config.d_model, vocabulary, bias=False, device=device, dtype=dtype)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the head's weight the embedding's, where the configuration says so. No shapes, raises nothing."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype=None, **kwargs: object) -> dict:
        """Each block's states, (b, ...), by its number."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: InferenceParams | None = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: object,
    ) -> Output:
        """Logits of the next tokens, as `.logits`.

        Args:
            input_ids: Tokens, shape (b, l).
            position_ids: Not used, as upstream: places follow from the order.
            inference_params: The running state of a generation.
            num_last_tokens: Only of so many last tokens; 0 is all.
            mixer_kwargs: For the mixers.
        """
        x = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        return Output(logits=self.lm_head(x[:, -num_last_tokens:] if num_last_tokens > 0 else x))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> "MambaLMHeadModel":
        """A published model: a folder with config.json and weights, or a name on the Hugging Face hub.

        Raises:
            FileNotFoundError: The folder has no weights.
        """
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, device=device, dtype=dtype, **kwargs)
        weights = load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype)
        if config.tie_embeddings:  # a safetensors file holds a shared weight once
            weights.setdefault("lm_head.weight", weights["backbone.embedding.weight"])
        model.load_state_dict(weights)
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json and pytorch_model.bin, which `from_pretrained` reads, here and upstream."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=4))


def load_config_hf(model_name: str | Path) -> dict:
    """The model's config.json. Raises: FileNotFoundError: The folder has none."""
    return json.loads(_file(model_name, ("config.json",)).read_text())


def load_state_dict_hf(
    model_name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The model's weights, by name, in their own shapes; pickles are read as tensors only.

    Raises:
        FileNotFoundError: The folder has none.
    """
    path = _file(model_name, WEIGHTS)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    return {name: t.to(device=device, dtype=dtype) for name, t in weights.items()}


def _file(model_name: str | Path, names: tuple[str, ...]) -> Path:
    """The first of these files that the folder, or the model on the hub, has."""
    folder = Path(model_name)
    if folder.is_dir():
        found = [folder / name for name in names if (folder / name).exists()]
        if not found:
            raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")
        return found[0]
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in names[:-1]:
        try:
            return Path(hf_hub_download(str(model_name), name))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(str(model_name), names[-1]))
