"""A range coder: symbols with integer frequencies to bytes and back, exactly.

The encoder keeps an interval [low, low + width) of a 64-bit number line and narrows it to a symbol's share; leading
bytes that are settled are written, and a carry runs back into what is written already.
Source: Martin 1979, Range encoding: an algorithm for removing redundancy from a digitised message.
"""

TOTAL_BITS = 24
"""Frequencies of one symbol's alphabet add up to 2 ** TOTAL_BITS."""
_NUMBER, _LEAST = 64, 48
_MASK = (1 << _NUMBER) - 1


class RangeEncoder:
    """Collects symbols; `finish` gives the bytes."""

    def __init__(self):
        self.low, self.width = 0, 1 << _NUMBER
        self.out = bytearray()

    def put(self, start: int, size: int, total_bits: int = TOTAL_BITS) -> None:
        """Write the symbol that owns [start, start + size) of [0, 2 ** total_bits), size >= 1."""
        share = self.width >> total_bits
        self.low += share * start
        self.width = share * size
        if self.low > _MASK:
            self.low &= _MASK
            self._carry()
        while self.width < 1 << _LEAST:
            self.out.append(self.low >> (_NUMBER - 8))
            self.low = self.low << 8 & _MASK
            self.width <<= 8

    def finish(self) -> bytes:
        """The shortest bytes that lie in the interval; zeros that follow need not be kept."""
        for count in range(_NUMBER // 8 + 1):
            # The first multiple of 256 ** -count in the interval.
            grain = 1 << (_NUMBER - 8 * count)
            point = -(-self.low // grain) * grain
            if point < self.low + self.width:
                break
        if point > _MASK:
            point &= _MASK
            self._carry()
        return bytes(self.out) + point.to_bytes(_NUMBER // 8, "big")[:count]

    def _carry(self) -> None:
        place = len(self.out) - 1
        while self.out[place] == 255:
            self.out[place] = 0
            place -= 1
        self.out[place] += 1


class RangeDecoder:
    """Reads what RangeEncoder wrote.

    Args:
        data: All its bytes; what is missing at the end counts as zeros.
    """

    def __init__(self, data: bytes):
        self.data, self.place, self.width = data, _NUMBER // 8, 1 << _NUMBER
        self.offset = int.from_bytes(data[: self.place].ljust(self.place, b"\0"), "big")  # of the number above low

    def point(self, total_bits: int = TOTAL_BITS) -> int:
        """Where in [0, 2 ** total_bits) the next symbol lies; its owner must be `take`n."""
        return min(self.offset // (self.width >> total_bits), (1 << total_bits) - 1)

    def take(self, start: int, size: int, total_bits: int = TOTAL_BITS) -> None:
        """Go past the symbol that owns [start, start + size)."""
        share = self.width >> total_bits
        self.offset -= share * start
        self.width = share * size
        while self.width < 1 << _LEAST:
            byte = self.data[self.place] if self.place < len(self.data) else 0
            self.offset = self.offset << 8 | byte
            self.place += 1
            self.width <<= 8
