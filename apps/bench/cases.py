"""The sizes that the scan is measured at. Imports no torch: `--help` stays quick."""

from dataclasses import dataclass

PASSES = ("forward", "forward_backward")


@dataclass(frozen=True)
class Case:
    """One problem: x (batch, length, d), state size n."""

    name: str
    batch: int
    length: int
    d: int
    n: int = 16

    @property
    def elements(self) -> int:
        """Entries of one (b, l, d) tensor."""
        return self.batch * self.length * self.d

    @property
    def updates(self) -> int:
        """State updates h = a h + b of one scan."""
        return self.elements * self.n

    def __str__(self) -> str:
        return f"{self.name} (B={self.batch}, L={self.length}, D={self.d}, N={self.n})"


# An ImageNet image in 16 x 16 patches and a class token; a page of tokens; one second of 16 kHz sound.
CASES = {
    "vision": Case("vision", 8, 197, 384),
    "long": Case("long", 1, 4096, 512),
    "audio": Case("audio", 1, 16000, 64),
}

# On a GPU: a language model's layer, a small vision transformer's at batch 64, one long sequence.
GPU_CASES = {
    "language": Case("language", 8, 4096, 2048),
    "vision": Case("vision", 64, 197, 384),
    "long": Case("long", 1, 131072, 1536),
}
