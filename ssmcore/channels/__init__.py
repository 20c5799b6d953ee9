"""What mixes the channels between two sequence mixers. A new one is one file here and one line in CHANNEL_MIXERS."""

from ..mixer import Mixer
from .einfft import EinFFT
from .mlp import Geglu, Glu, Mlp
from .moe import Moe
from .monarch import MonarchMlp
from .rwkv_channel_mix import RwkvChannelMix

CHANNEL_MIXERS: dict[str, type[Mixer]] = {
    "mlp": Mlp,
    "glu": Glu,
    "geglu": Geglu,
    "moe": Moe,
    "monarch": MonarchMlp,
    "einfft": EinFFT,
    "rwkv_channel_mix": RwkvChannelMix,
}
