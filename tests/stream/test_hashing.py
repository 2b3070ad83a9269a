"""Hashes are stable: snapshots hold them, and the ways to one hash agree."""

import random

import numpy as np

from headrace.connectors.spans import Spans
from headrace.stream.hashing import KEY_SEEDS, hash_spans

M, WORD = 0xC6A4A7935BD1E995, 2**64 - 1


def murmur(data, seed):
    """MurmurHash64A of bytes, in plain Python."""
    h = seed ^ len(data) * M & WORD
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        k = int.from_bytes(data[at : at + 8], "little") * M & WORD
        h = (h ^ (k ^ k >> 47) * M & WORD) * M & WORD
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * M & WORD
    h = (h ^ h >> 47) * M & WORD
    return h ^ h >> 47


def both(texts, seeds=KEY_SEEDS):
    """The hashes of texts by hand, and those of their bytes where they lie."""
    one, other = np.zeros((2, len(texts), len(seeds) + 1), np.uint64)
    for row, text in zip(one, texts, strict=True):
        row[1:] = [0 if text is None else murmur(text.encode(), seed) for seed in seeds]
    hash_spans(Spans.of([None if t is None else t.encode() for t in texts]), seeds, other, 1)
    return one, other


def test_texts_are_hashed_alike_in_place_for_every_length():
    r = random.Random(2)
    for letters in ("abc", "aé東🛫", "\x00\x7f"):
        texts = [text for n in range(101) for text in ("".join(r.choices(letters, k=n)), letters[-1] * n)]
        one, other = both(texts)
        assert np.array_equal(one, other)
        assert len(np.unique(one[:, 1])) == len(set(texts))


def test_a_text_that_is_missing_is_zero_and_an_empty_one_is_not():
    one, other = both(["", None, "x", None])
    assert np.array_equal(one, other)
    assert (other[:, 1] == 0).tolist() == [False, True, False, True]


def test_what_lies_around_a_text_does_not_count():
    spans = Spans.of([b"before", b"text", b"behind"]).take([1, 1])
    around, alone = np.zeros((2, 2, 1), np.uint64)
    hash_spans(spans, (7,), around, 0)
    hash_spans(Spans.of([b"text", b"text"]), (7,), alone, 0)
    assert np.array_equal(around, alone)


def test_hashes_never_change():
    _, other = both(["headrace", "JFK", ""])
    assert other[:, 1:].tolist() == HASHES


HASHES = [
    [0x7D42E12F3DA995F8, 0x2F56C84D50598EA1],
    [0x7AF489E78782021E, 0xE697D81622F27246],
    [0x84D69DCEF1E6733A, 0x18FF1E5F4EC7698C],
]
