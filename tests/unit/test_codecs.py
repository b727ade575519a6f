"""Every codec: what goes in and comes out, what is refused, and what whoever sends nonsense gets."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from codec_checks import coded, draw, skewed
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from roundelay import components
from roundelay.errors import ConfigError, DataError, WireError
from roundelay.stages import codecs
from roundelay.stages.codecs import (
    BF16,
    DRIVE,
    EDEN,
    FP8,
    FP16,
    FP32,
    QSGD,
    STC,
    Codec,
    Int8,
    RandK,
    Sign,
    TernGrad,
    TopK,
)  # fmt: skip
from roundelay.stages.codecs.hadamard import inverse, rotated, rotated_back, transform
from roundelay.stages.codecs.packing import pack, pack_trits, packed_bytes, trit_bytes, unpack, unpack_trits
from roundelay.stages.codecs.prefix import (
    gamma_size,
    gaps_of,
    indices_of,
    pack_bits,
    pack_gamma,
    pack_rice,
    packed_bits,
    rice_limit,
    rice_size,
    unpack_bits,
    unpack_gamma,
    unpack_rice,
)  # fmt: skip
from roundelay.stages.codecs.sparse import chosen_indices
from roundelay.stages.codecs.vectors import PIECE, num_blocks, pieces, seeded_bits

ALL: list[Codec] = [
    FP32(), FP16(), BF16(), Int8(), Int8(rounding="stochastic", block=100), FP8(), FP8(format="e5m2", block=7), QSGD(),
    QSGD(bits=3, bucket=10), QSGD(levels=1000, bucket=0), QSGD(coding="elias"), QSGD(levels=300, coding="elias"),
    QSGD(levels=1, bucket=0, coding="elias"), TernGrad(), TernGrad(clip_sigma=2.5, block=33), Sign(), Sign(block=9),
    TopK(k=3), TopK(fraction=0.1), TopK(fraction=1.0), RandK(fraction=0.1), RandK(fraction=0.9, unbiased=False),
    STC(fraction=0.05), STC(k=1000), DRIVE(), DRIVE(scale="least"), EDEN(bits=1), EDEN(), EDEN(bits=3), EDEN(bits=4),
]  # fmt: skip
every = pytest.mark.parametrize("codec", ALL, ids=str)
LENGTHS = (0, 1, 2, 5, 31, 255, 257, 1000, 2 * PIECE + 77)
SOME = settings(max_examples=40, deadline=None)


# ---- in and out -----------------------------------------------------------------------------------------------------


@every
def test_what_comes_out_is_a_vector_of_that_length(codec: Codec) -> None:
    for length in LENGTHS:
        x = torch.randn(length, dtype=torch.float64)
        before = x.clone()
        data = codec.encode(x, draw())
        y = codec.decode(data, length)
        assert torch.equal(x, before)
        assert (data.dtype, data.ndim, y.dtype, tuple(y.shape)) == (torch.uint8, 1, torch.float32, (length,))
        assert len(data) <= codec.max_bytes(length)
        assert torch.isfinite(y).all()
        single = codec.encode(x.float(), draw())
        assert torch.equal(single, data)
        assert torch.equal(codec.decode(data, length), y)
        assert not length or len(data)


@every
def test_what_comes_out_is_not_what_went_in_or_came(codec: Codec) -> None:
    x = torch.randn(300)
    data = codec.encode(x, draw())
    y = codec.decode(data, 300)
    assert len({t.untyped_storage().data_ptr() for t in (x, data, y)}) == 3


@every
def test_zeros_stay_zeros_and_tiny_values_tiny(codec: Codec) -> None:
    assert not coded(codec, torch.zeros(700)).any()
    assert not coded(codec, -torch.zeros(700)).any()
    for size in (1e-45, 1e-40, 1e-30):
        tiny = torch.randn(700) * size
        tiny[0] = size
        y = coded(codec, tiny)
        assert torch.isfinite(y).all()
        assert float(y.abs().max()) <= 1000 * float(tiny.abs().max())


@every
def test_large_values_are_coded_or_refused(codec: Codec) -> None:
    x = torch.randn(700).clamp(-1, 1) * torch.finfo(torch.float32).max
    if isinstance(codec, FP16 | BF16 | DRIVE | EDEN) or codec == RandK(fraction=0.1):
        with pytest.raises(DataError, match="diverge"):
            codec.encode(x, draw())
    else:
        assert torch.isfinite(coded(codec, x)).all()


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_with_its_place_and_number(codec: Codec, bad: float) -> None:
    x = torch.randn(40, dtype=torch.float64)
    x[[17, 30]] = bad
    with pytest.raises(DataError, match=r"2 of 40 values .* the first at index 17 \((nan|-?inf)"):
        codec.encode(x, draw())


def test_what_is_no_float32_vector_is_refused() -> None:
    for x in (torch.tensor([1e300], dtype=torch.float64), torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(DataError):
            QSGD().encode(x, draw())
    assert torch.equal(coded(FP32(), torch.arange(10.0)[::2]), torch.arange(10.0)[::2])
    for codec, most in ((FP16(), 65_519.0), (BF16(), 3.38e38)):
        assert torch.isfinite(coded(codec, torch.tensor([-most]))).all()
        with pytest.raises(DataError, match="ends at"):
            codec.encode(torch.tensor([0.0, -3.4e38]), draw())


# ---- randomness -----------------------------------------------------------------------------------------------------


RANDOM = [c for c in ALL if isinstance(c, QSGD | TernGrad | RandK | DRIVE | EDEN) or "stochastic" in str(c)]


@every
def test_the_same_key_gives_the_same_bytes_and_another_key_others_where_anything_is_drawn(codec: Codec) -> None:
    x = torch.randn(1000)
    first, again, other = (codec.encode(x, draw(number)) for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (codec not in RANDOM)


@every
def test_the_number_of_threads_changes_nothing(codec: Codec) -> None:
    x, threads = torch.randn(300_001), torch.get_num_threads()
    seen = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            data = codec.encode(x, draw())
            seen.append((data, codec.decode(data, len(x))))
    finally:
        torch.set_num_threads(threads)
    for data, y in seen[1:]:
        assert torch.equal(data, seen[0][0])
        assert torch.equal(y, seen[0][1])


def test_a_seed_means_the_same_for_ever() -> None:
    """Both ends draw from it, perhaps years and versions of numpy apart."""
    assert seeded_bits(7).random_raw(2).tolist() == [9478653231214648499, 17076013479929443665]
    assert chosen_indices(7, 4, 1000).tolist() == [179, 246, 337, 509]


@SOME
@given(st.integers(0, 2**64 - 1), st.integers(1, 200), st.data())
def test_chosen_indices_are_so_many_and_increase(seed: int, length: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, length))
    found = chosen_indices(seed, k, length)
    assert len(found) == k
    assert (np.diff(found) > 0).all()
    assert not k or (found[0] >= 0 and found[-1] < length)


@pytest.mark.parametrize("k", [2, 7])
def test_every_index_is_chosen_as_often(k: int) -> None:
    counts = sum(np.bincount(chosen_indices(seed, k, 9), minlength=9) for seed in range(9000))
    expected = 9000 * k / 9
    assert (np.abs(counts - expected) < 5 * math.sqrt(expected * (1 - k / 9))).all()


# ---- bytes from elsewhere -------------------------------------------------------------------------------------------


def survives(codec: Codec, data: Tensor, length: int) -> None:
    """A vector of finite values, or ``WireError``: nothing else comes of any bytes."""
    try:
        y = codec.decode(data, length)
    except WireError:
        return
    assert y.shape == (length,)
    assert torch.isfinite(y).all()


@every
@SOME
@given(st.binary(max_size=300), st.integers(0, 90))
def test_any_bytes(codec: Codec, data: bytes, length: int) -> None:
    size = codec.max_bytes(length)
    for came in (data, (data * (size // max(1, len(data)) + 1))[:size]):
        survives(codec, torch.tensor(list(came), dtype=torch.uint8), length)


@every
@SOME
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(-3, 3), st.integers(-2, 2))
@example(0, 255, 0, 0)
def test_an_encoding_that_was_changed(codec: Codec, at: int, byte: int, longer: int, length: int) -> None:
    data = codec.encode(skewed(60), draw())
    data[at % len(data)] = byte
    data = torch.cat([data[: len(data) + min(0, longer)], torch.full((max(0, longer),), byte, dtype=torch.uint8)])
    survives(codec, data, 60 + length)


@every
def test_too_few_and_too_many_bytes(codec: Codec) -> None:
    data = codec.encode(torch.randn(500), draw())
    for wrong in (data[:-1], torch.cat([data, torch.zeros(1, dtype=torch.uint8)]), data[:0]):
        with pytest.raises(WireError):
            codec.decode(wrong, 500)
    for length in (0, 499 if len(data) > 499 else 5):
        survives(codec, data, length)
    for wrong in (data.float(), data[None]):
        with pytest.raises(WireError, match="expected bytes"):
            codec.decode(wrong, 500)


@every
def test_few_bytes_that_claim_to_be_many_values_cost_nothing(codec: Codec) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            codec.decode(torch.full((50,), 1, dtype=torch.uint8), 50_000_000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def changed(codec: Codec, length: int, at: int, to: bytes) -> Tensor:
    data = codec.encode(torch.linspace(-1, 1, length), draw())
    data[at : at + len(to) if at >= 0 or at + len(to) else None] = torch.tensor(list(to), dtype=torch.uint8)
    return data


NAN, INF, MINUS, HUGE = (np.float32(v).tobytes() for v in (math.nan, math.inf, -1.0, 1e38))


@pytest.mark.parametrize(
    ("codec", "length", "at", "to", "why"),
    [
        (FP32(), 10, 4, NAN, "NaN"),
        (FP32(), 10, 4, INF, "NaN or infinite"),
        (FP16(), 10, 0, b"\x00\x7c", "NaN or infinite"),
        (Int8(), 10, 0, NAN, "NaN"),
        (Int8(), 10, 0, MINUS, "negative"),
        (Int8(), 10, 5, b"\xff", "255"),
        (FP8(), 10, 5, b"\x7f", "a byte is NaN"),
        (FP8(format="e5m2"), 10, 5, b"\x7c", "a byte is NaN"),
        (QSGD(), 10, 0, INF, "infinite"),
        (QSGD(), 10, 4, b"\xff", "15 is no level"),
        (QSGD(), 9, -1, b"\x17", "after the last"),
        (QSGD(levels=300), 9, -1, b"\xff", "after the last|no level"),
        (QSGD(levels=2, coding="elias"), 10, 4, b"\x02", "coding 2"),
        (QSGD(levels=2, coding="elias"), 10, 4, b"\x01\xff\xff\xff\xff", "values are not 0"),
        (QSGD(levels=2, coding="elias"), 10, 6, b"\xff", "after the last"),
        (TernGrad(), 10, 4, b"\xf3", "243"),
        (TernGrad(), 9, -1, b"\xf2", "not 0"),
        (Sign(), 9, -1, b"\x02", "after the last"),
        (TopK(k=2), 40, 0, b"\x03", "way 3"),
        (TopK(k=2), 40, 1, NAN, "NaN"),
        (TopK(k=2), 40, -2, b"\x00\x00", "do not increase"),
        (TopK(k=2), 40, -2, b"\xff\x0f", "do not increase"),
        (TopK(k=12), 40, -1, b"\x00", "12 indices"),
        (RandK(k=2), 40, 8, NAN, "NaN"),
        (STC(k=4), 40, 0, MINUS, "negative"),
        (STC(k=4), 40, -1, b"\x00", "unary"),
        (DRIVE(), 40, 8, HUGE, "no vector has"),
        (DRIVE(), 40, 8, MINUS, "negative"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_no_vector_is_encoded_as(codec: Codec, length: int, at: int, to: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        codec.decode(changed(codec, length, at, to), length)


# ---- configuration --------------------------------------------------------------------------------------------------


@every
def test_a_codec_is_found_by_its_name_and_described(codec: Codec) -> None:
    table = components.describe(codec)
    assert components.build(table, components.namespace(codecs), "codec") == codec


def test_names_in_a_job_file() -> None:
    named = {"top_k": TopK(k=3), "rand_k": RandK(k=3), "stc": STC(k=3)}
    for use, codec in named.items():
        assert components.build({"use": use, "k": 3}, components.namespace(codecs), "codec") == codec
    for use in ("fp32", "fp16", "bf16", "int8", "fp8", "qsgd", "terngrad", "sign", "drive", "eden"):
        assert (
            components.build({"use": use}, components.namespace(codecs), "codec").encode(torch.ones(3), draw()).numel()
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Int8(block=0), lambda: Int8(block=2.5), lambda: Int8(rounding="up"), lambda: FP8(format="e3m4"),
        lambda: QSGD(bits=4, levels=7), lambda: QSGD(bits=1), lambda: QSGD(bits=17), lambda: QSGD(levels=0),
        lambda: QSGD(levels=2**15), lambda: QSGD(coding="huffman"), lambda: QSGD(bucket=True),
        lambda: TernGrad(clip_sigma=0.0), lambda: TernGrad(clip_sigma=math.nan), lambda: Sign(block=-1), lambda: TopK(),
        lambda: TopK(fraction=0.1, k=2), lambda: TopK(fraction=0.0), lambda: TopK(fraction=1.1), lambda: TopK(k=0),
        lambda: RandK(fraction=math.nan), lambda: STC(k=1.5), lambda: DRIVE(scale="none"), lambda: EDEN(bits=5),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(make: Callable[[], Codec]) -> None:
    with pytest.raises(ConfigError, match="got"):
        make()


def test_how_many_are_taken() -> None:
    for length, fraction, k in ((100, 0.07, 7), (3, 0.01, 1), (10, 1.0, 10)):
        x = torch.arange(1.0, length + 1)
        assert int((coded(TopK(fraction=fraction), x) != 0).sum()) == k
        assert int((coded(RandK(fraction=fraction), x) != 0).sum()) == k
    assert (QSGD(bits=6).width, QSGD(levels=8).width) == (6, 5)
    assert replace(QSGD(), bits=8).num_levels == 127


# ---- bits -----------------------------------------------------------------------------------------------------------


def one_by_one(fields: list[tuple[int, int]]) -> bytes:
    """Write (number, bits) after one another, lowest bit first."""
    total = at = 0
    for number, bits in fields:
        total |= number << at
        at += bits
    return total.to_bytes(-(-at // 8), "little")


@SOME
@given(st.integers(1, 16), st.data())
def test_packing(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=80))
    packed = pack(np.array(codes, np.uint16), bits)
    low = one_by_one([(c & 255, min(bits, 8)) for c in codes])
    assert packed.tobytes() == low + (one_by_one([(c >> 8, bits - 8) for c in codes]) if bits > 8 else b"")
    assert len(packed) == packed_bytes(len(codes), bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_over_several_pieces(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, 2 * PIECE + 13)
    packed = pack(codes.astype(np.uint16), bits)
    assert (unpack(packed, bits, len(codes)) == codes).all()


@SOME
@given(st.lists(st.integers(0, 2), max_size=40))
def test_three_values(codes: list[int]) -> None:
    packed = pack_trits(np.array(codes, np.uint8))
    assert len(packed) == trit_bytes(len(codes)) == -(-len(codes) // 5)
    assert unpack_trits(packed, len(codes)).tolist() == codes
    for i, byte in enumerate(packed.tolist()):
        digits = [codes[j * len(packed) + i] for j in range(5) if j * len(packed) + i < len(codes)]
        assert byte == sum(digit * 3**j for j, digit in enumerate(digits))


@SOME
@given(st.lists(st.integers(0, 2000), max_size=60, unique=True), st.integers(0, 20))
def test_rice_codes(indices: list[int], bits: int) -> None:
    found = np.array(sorted(indices), np.int64)
    gaps = gaps_of(found)
    packed = pack_rice(gaps, bits)
    assert len(packed) == rice_size(gaps, bits) <= rice_limit(len(gaps), 2001, bits)
    unary = one_by_one([(1 << (g >> bits), (g >> bits) + 1) for g in gaps.tolist()])
    assert packed[packed_bits(len(gaps), bits) :].tobytes() == unary
    assert unpack_rice(packed, bits, len(gaps)).tolist() == gaps.tolist()
    assert indices_of(gaps, 2001).tolist() == found.tolist()


@SOME
@given(st.lists(st.integers(1, 2**32), max_size=60))
def test_gamma_codes(numbers: list[int]) -> None:
    packed = pack_gamma(np.array(numbers, np.int64))
    lengths = [n.bit_length() - 1 for n in numbers]
    unary = one_by_one([(1 << n, n + 1) for n in lengths])
    tails = one_by_one([(n & ((1 << size) - 1), size) for n, size in zip(numbers, lengths, strict=True)])
    assert packed.tobytes() == unary + tails
    assert len(packed) == gamma_size(np.array(numbers, np.int64))
    found, used = unpack_gamma(np.concatenate([packed, np.array([255], np.uint8)]), len(numbers))
    assert (found.tolist(), used) == (numbers, len(packed))


@SOME
@given(st.integers(0, 32), st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_wide_numbers(bits: int, numbers: list[int]) -> None:
    kept = np.array([n & (2**bits - 1) for n in numbers], np.int64)
    assert unpack_bits(pack_bits(kept, bits), bits, len(kept)).tolist() == kept.tolist()


@SOME
@given(st.integers(0, 300_000), st.integers(1, 400_000))
def test_pieces_cover_a_vector_block_by_block(length: int, block: int) -> None:
    end = 0
    for piece in pieces(length, block):
        assert piece.span.start == end < piece.span.stop
        assert piece.size == piece.span.stop - piece.span.start <= PIECE
        assert piece.shape[0] == piece.blocks.stop - piece.blocks.start
        assert piece.span.start // block == piece.blocks.start
        assert (piece.span.stop - 1) // block == piece.blocks.stop - 1
        end = piece.span.stop
    assert end == length
    assert num_blocks(length, block) == math.ceil(length / block)


@pytest.mark.parametrize("n", [1, 2, 8, 32, 256])
def test_the_transform_is_that_of_hadamard(n: int) -> None:
    """Entries of 1 and -1, rows orthogonal; so are those of the rotation, which is undone."""
    unit = np.eye(n, dtype=np.float32)
    matrix = np.stack([transform(row.copy(), np.empty(n, np.float32)) for row in unit], axis=1)
    assert (np.abs(matrix) == 1).all()
    assert np.array_equal(matrix @ matrix.T, n * unit)
    back = np.stack([inverse(row.copy(), np.empty(n, np.float32)) for row in matrix.T], axis=1)
    assert np.array_equal(back, n * unit)
    x = np.random.default_rng(n).normal(size=n).astype(np.float32)
    y = rotated(x.copy(), np.empty(n, np.float32), seeded_bits(1)).copy()
    assert float(y @ y) == pytest.approx(n * float(x @ x), rel=1e-5)
    assert rotated_back(y, np.empty(n, np.float32), seeded_bits(1)) / n == pytest.approx(x, abs=1e-5)
