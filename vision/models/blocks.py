"""Residual branches that stand in a timm model: one tensor in, one out, and whole in a graph that timm traces.

b batch, l tokens, h and w the sides of a map, d channels; the stream is float32 whatever the type of the weights.
"""

from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from ssmcore.array_types import Float, Tokens
from ssmcore.blocks import LayerNorm, Residual, RMSNorm
from ssmcore.channels.mlp import Mlp
from ssmcore.functional import at_least_float32
from ssmcore.mixer import Context, Mixer

Map = Float[Tensor, "b h w d"]
"""An image of feature vectors, channel-last."""

register_notrace_module(RMSNorm)
register_notrace_module(LayerNorm)


@register_notrace_module
class TokenBlock(Residual):
    """A residual branch on a sequence, (b, l, d) to (b, l, d); its mixer is told the grid. Raises nothing."""

    def forward(self, x: Tokens, h: int, w: int) -> Tokens:
        """tokens + mixer(norm(tokens)), shape (b, l, d), of a grid of h x w patches. Raises nothing."""
        return super().forward(at_least_float32(x), None, Context(shared={"grid": (h, w)}))[0]


class TransformerBlock(nn.Module):
    """A token mixer and an MLP, each a residual branch with a LayerNorm, (b, l, d) to (b, l, d). Raises nothing."""

    def __init__(self, mixer: Mixer, drop_path: float, layer_scale: float | None = None, eps: float = 1e-5):
        super().__init__()
        options = {"norm": "layer", "drop_path": drop_path, "layer_scale": layer_scale}
        self.mixer, self.mlp = TokenBlock(mixer, **options), TokenBlock(Mlp(mixer.d_model), **options)
        self.mixer.norm.eps = self.mlp.norm.eps = eps

    def forward(self, x: Tokens, h: int, w: int) -> Tokens:
        """Run both on the tokens of a grid of h x w, (b, h w, d). Raises nothing."""
        return self.mlp(self.mixer(x, h, w), h, w)


@register_notrace_module
class MapBlock(Residual):
    """A residual branch on a map, (b, h, w, d) to (b, h, w, d); its mixer is told the grid. Raises nothing."""

    def forward(self, x: Map) -> Map:
        """map + mixer(norm(map)), shape (b, h, w, d). Raises nothing."""
        grid = (x.shape[1], x.shape[2])
        y, _ = super().forward(at_least_float32(x).flatten(1, 2), None, Context(shared={"grid": grid}))
        return y.unflatten(1, grid)


def undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that the mixers of a model ask to keep out of weight decay. No shapes, raises nothing."""
    mixers = [(at, module) for at, module in model.named_modules() if isinstance(module, Mixer)]
    specs = [(f"{at}.{name}", spec) for at, mixer in mixers for name, spec in mixer.param_spec().items()]
    return {name for name, spec in specs if not spec.decay}
