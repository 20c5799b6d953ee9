"""SaShiMi weights that the authors' code saved, as this package's models.

Read are the standalone backbone and the training code's language models, decoder and U-Net (the embedding is `encoder`,
the head `decoder`; pools may have weight norm, and norms two numbers), with kernels of releases 3 and 4: S4, and S4D of
release 4. The form is read off the shapes. One thing no weight tells: release 4 maps its steps through exp in the
standalone backbone and through softplus in the training code's default, so the caller says which.
Source: state-spaces/s4, models/sashimi/sashimi.py and src/models/sequence/backbones/{sashimi,unet}.py at v3 and v4.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmcore.mixers.s4 import from_published

from ..config import SaShiMiConfig
from ..errors import AudioError
from .sashimi import SaShiMi

StepTransform = Literal["exp", "softplus"]
"""How release 4 makes a step of its parameter."""


def load_upstream(source: str | Path | Mapping[str, Any], steps: StepTransform = "exp") -> SaShiMi:
    """A model with upstream's weights.

    Args:
        source: A file that torch.save or safetensors wrote, or its content; containers such as "state_dict" are opened.
        steps: See StepTransform; release 3 always has exp.
    Returns:
        The model, in evaluation mode. Where the weights are a backbone alone, embedding and head are fresh: use
        `model.norm(model.backbone(...))`.
    Raises:
        AudioError: No such file, or the weights are not a SaShiMi's.
    """
    weights = _unwrap(_read(source) if isinstance(source, str | Path) else source)
    config = upstream_config(weights)
    model = SaShiMi(config)
    missing, unknown = model.load_state_dict(checkpoint_filter_fn(weights, model, steps), strict=False)
    lost = [name for name in missing if not name.startswith(("embedding.", "head."))]
    if lost or unknown:
        raise AudioError(f"upstream's weights do not fit: missing {lost[:3]}, unknown {unknown[:3]}")
    return model.eval()


def upstream_config(weights: Mapping[str, Tensor]) -> SaShiMiConfig:
    """The form that weights by upstream's names have.

    Args:
        weights: Tensors by name, unwrapped.
    Raises:
        AudioError: They are not a SaShiMi's.
    """
    ups = sorted({int(m[1]) for name in weights if (m := re.match(r"u_layers\.(\d+)\.", name))})
    centre = _residuals(weights, "c_layers")
    if not ups or not centre:
        raise AudioError("these are not SaShiMi's weights: there is no u_layers or no c_layers among them")
    d_model = width = weights["norm.weight"].shape[0]
    pools, expand = [], 2
    for i in reversed(ups):  # from the outside to the centre
        up = _linear(weights, f"u_layers.{i}.0.linear.")[0]
        pools.append(up.shape[0] // width)
        expand, width = up.shape[1] // width, up.shape[1]
    _refuse_other_forms(weights)
    cores = [p for p in centre if _kernel(weights, p)]
    kernel, out = _kernel(weights, cores[0]), _linear(weights, cores[0], "output_linear")[0]
    systems = kernel["B"].shape[1]
    options = {"d_state": 2 * kernel["C"].shape[2], "systems": None if systems == width else systems}
    options |= {"out": "glu" if out.shape[0] == 2 * width else "linear"}
    name = "s4" if "P" in kernel else "s4d"
    mixers: dict[str, dict[str, Any]] = {name: options | ({"learn_input": True} if name == "s4d" else {})}
    others = [p for p in centre if p not in cores]
    if others:
        mixers["mlp"] = {"expand": _linear(weights, others[0], r"ff\.0")[0].shape[0] / width}
    encoder = _outside(weights, "encoder", "embed")
    return SaShiMiConfig(
        levels=encoder[0].shape[0] if encoder else 256,
        d_model=d_model,
        pool=tuple(pools),
        expand=expand,
        layers=len(cores),
        tiers=(f"{name}/mlp" if others else name,),
        mixers=mixers,
        form="unet" if _residuals(weights, "d_layers") else "decoder",
        norm="scalar" if any(name.endswith("norm.m") for name in weights) else "layer",
    )


def _refuse_other_forms(weights: Mapping[str, Tensor]) -> None:
    """What would be left out without a word must not load."""
    if found := [name for name in weights if re.search(r"\.(input_linear|input_gate|output_gate)\.", name)]:
        raise AudioError(f"upstream's gated blocks ({found[0]}) are not read, only those with an output map")
    if found := [name for name, t in weights.items() if re.search(r"\.kernel\.(.*\.)?C$", name) and t.shape[0] != 1]:
        raise AudioError(f"{found[0]} has {weights[found[0]].shape[0]} read-outs, expected 1: models that look both "
                         "ways cannot make a sample after another")  # fmt: skip


def checkpoint_filter_fn(weights: Mapping[str, Any], model: SaShiMi, steps: StepTransform = "exp") -> dict[str, Tensor]:
    """Upstream's weights by this package's names.

    Args:
        weights: By upstream's names, perhaps in containers; or this package's own, which are returned as they are.
        model: Says which form.
        steps: See StepTransform.
    Returns:
        Tensors of any shape by name.
    Raises:
        AudioError: A weight is missing, or of another form.
    """
    if any(name.startswith("backbone.stage.") or ".inner." in name for name in weights):
        return dict(weights)
    weights = _unwrap(weights)
    depth = len(model.config.pool)
    ours = {"norm.weight": weights["norm.weight"], "norm.bias": weights["norm.bias"]}
    for name, words in (("embedding", ("encoder", "embed")), ("head", ("decoder", "head", "output"))):
        for part, t in zip(("weight", "bias"), _outside(weights, *words), strict=False):
            ours[f"{name}.{part}"] = t
    down, way_down = [], _residuals(weights, "d_layers")
    for name in sorted({m[0] for n in weights if (m := re.match(r"d_layers\.(\d+)\.", n))}, key=_number):
        if name not in way_down:
            down.append(name)
    per_stage = len(_residuals(weights, "c_layers"))
    for tier in range(depth + 1):
        at = "backbone." + "inner." * tier
        if tier == depth:
            ours |= _stage(weights, _residuals(weights, "c_layers"), f"{at}stage.", model, steps)
            break
        up = f"u_layers.{depth - 1 - tier}."
        for ours_name, theirs in (("down", down[tier]), ("up", f"{up}0.")):
            W, b = _linear(weights, f"{theirs}linear.")
            ours |= {f"{at}{ours_name}.linear.weight": W, f"{at}{ours_name}.linear.bias": b}
        ours |= _stage(weights, _residuals(weights, up.rstrip(".")), f"{at}stage.", model, steps)
        if way_down:
            mine = way_down[tier * per_stage : (tier + 1) * per_stage]
            ours |= _stage(weights, mine, f"{at}way_down.", model, steps)
    return ours


def _stage(weights: Mapping, prefixes: list[str], to: str, model: SaShiMi, steps: StepTransform) -> dict[str, Tensor]:
    """The residual branches of one stage; two of them, core and MLP, are one layer here."""
    branches = 2 if "mlp" in model.config.mixers else 1
    ours = {}
    for i, prefix in enumerate(prefixes):
        at = f"{to}layers.{i // branches}.branches.{i % branches}."
        for part in ("norm.weight", "norm.bias", "norm.m", "norm.s"):
            found = [t for name, t in weights.items() if name.startswith(prefix) and name.endswith(part)]
            if found:
                last = {"m": "shift", "s": "scale"}.get(part[5:], part[5:])
                ours[f"{at}norm.{last}"] = found[0]
        kernel = _kernel(weights, prefix)
        if kernel:
            core = _core(kernel, steps)
            core["D"] = next(t for n, t in weights.items() if n.startswith(prefix) and n.endswith(".D"))[0]
            core["out_proj.weight"], core["out_proj.bias"] = _linear(weights, prefix, "output_linear")
        else:
            core = {}
            for name, theirs in (("in_proj", r"ff\.0"), ("out_proj", r"ff\.2")):
                core[f"{name}.weight"], core[f"{name}.bias"] = _linear(weights, prefix, theirs)
        ours |= {f"{at}mixer.{name}": t for name, t in core.items()}
    return ours


def _core(kernel: dict[str, Tensor], steps: StepTransform) -> dict[str, Tensor]:
    """A kernel's parameters by our names."""
    if "inv_dt" in kernel and steps == "softplus":
        kernel = kernel | {"inv_dt": F.softplus(kernel["inv_dt"]).log()}
    if "P" in kernel:
        return from_published(kernel)
    if missing := {"A_real", "A_imag", "inv_dt", "B", "C"} - set(kernel):
        raise AudioError(f"an S4D kernel without {', '.join(sorted(missing))} is not one of release 4")
    return {
        "log_dt": kernel["inv_dt"].flatten(),
        "A_log": kernel["A_real"],
        "A_imag": -kernel["A_imag"],
        "B": kernel["B"][0],
        "C": kernel["C"][0],
    }


def _kernel(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The kernel below a residual block by last names; {} where it is an MLP."""
    return {name.rpartition(".")[2]: t for name, t in weights.items() if name.startswith(prefix) and ".kernel." in name}


def _residuals(weights: Mapping[str, Tensor], group: str) -> list[str]:
    """Prefixes of the residual blocks of a group, in order: what has a norm."""
    found = {m[0] for name in weights if (m := re.match(rf"{group}\.(\d+)\.", name)) and ".norm." in name[:-1]}
    return sorted(found, key=_number)


def _number(prefix: str) -> int:
    return int(prefix.rstrip(".").rpartition(".")[2])


def _linear(weights: Mapping[str, Tensor], prefix: str, inner: str = "") -> tuple[Tensor, Tensor]:
    """Weight (n, k) and bias (n,) of a map below a prefix: Linear or Conv1d of width 1, with or without weight norm."""
    pattern = re.compile(re.escape(prefix) + (rf".*{inner}\..*" if inner else ".*"))
    found = {name.rpartition(".")[2]: t for name, t in weights.items() if pattern.match(name)}
    if "weight_v" in found:
        v = found["weight_v"]
        found["weight"] = found["weight_g"] * v / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
    if "weight" not in found:
        raise AudioError(f"upstream's weights have no map {prefix}{inner}")
    W = found["weight"].flatten(1)
    return W, found.get("bias", torch.zeros(len(W))).flatten()


def _outside(weights: Mapping[str, Tensor], *words: str) -> list[Tensor]:
    """Weight and bias of the first module outside the backbone whose name starts with one of the words."""
    names = [n for n in weights if n.startswith(words) and n.endswith(("weight", "bias"))]
    return [weights[n] for n in sorted(names, key=lambda n: n.endswith("bias"))][:2]


def _unwrap(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Out of containers, and without what wrappers put before the names: d_layers, c_layers, u_layers and norm lead."""
    while isinstance(
        inner := next((weights[k] for k in ("state_dict", "model_state_dict") if k in weights), None), Mapping
    ):
        weights = inner
    tensors = {name: t for name, t in weights.items() if isinstance(t, Tensor)}
    lead = next((n[: n.index("c_layers.")] for n in tensors if "c_layers." in n), "")
    return _nested({name.removeprefix(lead).removeprefix("model."): t for name, t in tensors.items()})


def _nested(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The training code's U-Net numbers the layers on its way up in one row; here each stage counts its own."""
    pools = sorted(
        int(m[1]) for name in weights if (m := re.match(r"u_layers\.(\d+)\.linear\.(weight|weight_v)$", name))
    )
    if not pools:
        return weights
    renamed = {}
    for name, t in weights.items():
        if m := re.match(r"u_layers\.(\d+)\.(.*)", name):
            stage = sum(at <= int(m[1]) for at in pools) - 1
            name = f"u_layers.{stage}.{int(m[1]) - pools[stage]}.{m[2]}"
        renamed[name] = t
    return renamed


def _read(path: str | Path) -> Mapping[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the two readers raise
        raise AudioError(f"{path}: cannot be read as weights ({' '.join(str(error).split())[:200]})") from None
