"""Damage to files: the same for the same target, seed and number, on every machine."""

from collections.abc import Sequence
from random import Random

_NUMBERS = [0, 1, 2, 4, 8, 127, 128, 255, 256, 32_767, 32_768, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


def mutated(seeds: Sequence[bytes], words: Sequence[bytes], key: str) -> bytes:
    """A damaged file: a seed, or the head of one before the tail of another, with up to eight changes."""
    random = Random(key)
    data = bytearray(random.choice(seeds))
    if random.random() < 0.15:
        other = random.choice(seeds)
        data = data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]
    for _ in range(random.choice((1, 1, 1, 2, 3, 5, 8))):
        _change(data, words, random)
    return bytes(data)


def _change(data: bytearray, words: Sequence[bytes], random: Random) -> None:
    # Most of what a format means stands at its begin.
    at = int(len(data) * random.random() ** random.choice((1, 1, 3)))
    match random.randrange(8):
        case 0:
            data[at : at + 1] = bytes([random.randrange(256)])
        case 1:
            data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << random.randrange(8)])
        case 2:
            size = random.choice((1, 2, 4, 8))
            order = random.choice(("little", "big"))
            value = random.choice(_NUMBERS) + random.choice((-1, 0, 0, 1))
            data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
        case 3:
            del data[at : at + random.choice((1, 2, 4, 16, 64))]
        case 4:
            data[at:at] = bytes(random.randrange(256) for _ in range(random.choice((1, 2, 4, 16))))
        case 5:
            part = data[at : at + random.choice((4, 16, 64, 256))]
            to = random.randrange(len(data) + 1)
            data[to:to] = part * random.choice((1, 1, 2, 9))
        case 6 if words:
            word = random.choice(words)
            data[at : at + (len(word) if random.random() < 0.5 else 0)] = word
        case _:
            if random.random() < 0.3:
                del data[at:]
