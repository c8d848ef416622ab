from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray

from finetune.serving.refusal import LONGEST_QUOTE, Refusal
from finetune.serving.tensors import DATATYPES, DTYPES, MAX_DIMS, Tensor, from_data, from_raw, of_array, to_data, to_raw

shapes = stn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
numeric = st.sampled_from(sorted(DTYPES))
UNFIT = "its nested data do not fit shape"


def arrays(datatype: str, **elements: Any) -> st.SearchStrategy[NDArray[Any]]:
    return stn.arrays(DTYPES[datatype], shapes, elements=elements or None)


def refusal(read: Any, datatype: object, shape: object, data: object) -> str:
    with pytest.raises(Refusal) as caught:
        read("x", datatype, shape, data)
    assert caught.value.status == 400
    assert caught.value.message.startswith("tensor 'x': ")
    return caught.value.message.removeprefix("tensor 'x': ")


def nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    return np.array([*flat, None], object)[:-1].reshape(shape).tolist()


def assert_same(tensor: Tensor, array: NDArray[Any]) -> None:
    assert isinstance(tensor.values, np.ndarray)
    assert (tensor.shape, tensor.values.dtype) == (array.shape, array.dtype)
    # bytes, as NaN equals nothing and -0.0 equals 0.0
    assert tensor.values.tobytes() == array.tobytes()


@given(st.data())
@settings(max_examples=80)
def test_numbers_go_through_raw_bytes_unchanged(data: st.DataObject) -> None:
    datatype = data.draw(numeric)
    array = data.draw(arrays(datatype))
    tensor = of_array("x", array)
    assert tensor.datatype == datatype
    assert to_raw(tensor) == array.tobytes()
    assert_same(from_raw("x", datatype, list(array.shape), to_raw(tensor)), array)


@given(st.data())
@settings(max_examples=80)
def test_numbers_go_through_json_unchanged_flat_or_nested(data: st.DataObject) -> None:
    datatype = data.draw(numeric.filter(lambda name: name != "FP16"))
    finite = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    array = data.draw(arrays(datatype, **finite))
    flat = to_data(of_array("x", array))
    assert_same(from_data("x", datatype, list(array.shape), flat), array)
    if array.ndim:
        assert_same(from_data("x", datatype, list(array.shape), nested(flat, array.shape)), array)


@given(elements=st.lists(st.binary(max_size=20), max_size=12))
@settings(max_examples=40)
def test_elements_of_any_bytes_go_through_raw_bytes(elements: list[bytes]) -> None:
    tensor = Tensor("x", "BYTES", (len(elements), 1), elements)
    again = from_raw("x", "BYTES", [len(elements), 1], to_raw(tensor))
    assert (again.values, again.shape) == (elements, tensor.shape)


@given(elements=st.lists(st.text(max_size=8), max_size=12))
@settings(max_examples=40)
def test_elements_of_text_go_through_json(elements: list[str]) -> None:
    tensor = from_data("x", "BYTES", [1, len(elements)], elements)
    assert tensor.values == [element.encode() for element in elements]
    assert to_data(tensor) == elements


@given(datatype=st.sampled_from(DATATYPES), shape=st.lists(st.integers(0, 3), max_size=3), raw=st.binary(max_size=60))
@settings(max_examples=100)
def test_any_bytes_are_a_tensor_or_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    outcome: bytes | int
    try:
        outcome = to_raw(from_raw("x", datatype, shape, raw))
    except Refusal as said:
        outcome = said.status
    assert outcome in (raw, 400)


def test_bytes_stand_in_little_endian_order() -> None:
    assert from_raw("x", "UINT16", [2], b"\x01\x00\x00\x01").values == pytest.approx([1, 256])
    assert to_raw(of_array("x", np.array([1, 256], ">u2"))) == b"\x01\x00\x00\x01"
    assert to_raw(Tensor("x", "BYTES", (2,), [b"ab", b""])) == b"\x02\x00\x00\x00ab\x00\x00\x00\x00"


def test_transposed_and_reversed_outputs_are_sent_row_by_row() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T[::-1]
    tensor = of_array("x", array)
    assert tensor.shape == (3, 2)
    assert to_data(tensor) == [2, 5, 1, 4, 0, 3]
    assert_same(from_raw("x", "INT32", [3, 2], to_raw(tensor)), array)


def test_numbers_are_not_copied_but_for_their_place_in_memory() -> None:
    body = bytes(range(1, 42))
    pixels = from_raw("x", "UINT8", [5, 8], memoryview(body)[1:]).values
    assert isinstance(pixels, np.ndarray)
    assert not pixels.flags.owndata
    assert not pixels.flags.writeable
    for start in range(8):
        floats = from_raw("x", "FP64", [4], memoryview(body)[start : start + 32]).values
        assert isinstance(floats, np.ndarray)
        assert floats.flags.aligned
        assert floats.tobytes() == body[start : start + 32]


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "said"),
    [
        ("FP32", [2], b"1234567", "has 7 bytes of data, but shape [2] of FP32 takes 8"),
        ("FP32", [2], b"123456789", "has 9 bytes of data, but shape [2] of FP32 takes 8"),
        ("FP32", [], b"", "has 0 bytes of data, but shape [] of FP32 takes 4"),
        ("UINT8", [0, 3], b"1", "has 1 bytes of data, but shape [0, 3] of UINT8 takes 0"),
        ("UINT8", [2**40, 2**20], b"1", "has 1 bytes of data, but shape"),
        ("BOOL", [2], b"\x01\x02", "a BOOL is one byte of 0 or 1"),
        ("BYTES", [2**40], b"1234", "its shape asks for 1099511627776 elements"),
        ("BYTES", [1], b"123", "its shape asks for 1 elements, each with 4 bytes of length, in 3 bytes"),
        ("BYTES", [1], b"\x02\x00\x00\x00a", "element 0 says it has 2 bytes, but 1 are left"),
        ("BYTES", [1], b"\xff\xff\xff\xffabc", "element 0 says it has 4294967295 bytes, but 3 are left"),
        ("BYTES", [2], b"\x03\x00\x00\x00abc\x00", "its data end before the length of element 1"),
        ("BYTES", [1], b"\x00\x00\x00\x00abc", "3 bytes are left after its 1 elements"),
        ("BYTES", [0], b"abc", "3 bytes are left after its 0 elements"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(datatype: str, shape: list[int], raw: bytes, said: str) -> None:
    assert refusal(from_raw, datatype, shape, raw).startswith(said)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "said"),
    [
        ("UINT8", [1], [300], "300 is out of range for UINT8, 0 to 255"),
        ("UINT8", [2], [1, -1], "-1 is out of range for UINT8, 0 to 255"),
        ("INT8", [1], [-129], "-129 is out of range for INT8, -128 to 127"),
        ("UINT64", [1], [2**64], "18446744073709551616 is out of range for UINT64, 0 to 18446744073709551615"),
        ("INT64", [1], [10**5000], "a very long number is out of range for INT64"),
        ("UINT8", [1], [1.5], "its data hold a number with a fraction or exponent, but UINT8 takes whole numbers only"),
        ("UINT8", [1], [True], "its data hold a boolean, but UINT8 takes whole numbers only"),
        ("UINT8", [1], [float("nan")], "its data hold a number with a fraction or exponent, but"),
        ("UINT8", [2], [1, None], "its data hold null, but UINT8 takes whole numbers only"),
        ("UINT8", [1], ["1"], "its data hold a string, but UINT8 takes whole numbers only"),
        ("UINT8", [1], [{}], "its data hold an object, but UINT8 takes whole numbers only"),
        ("UINT8", [2], [1, [2]], "its data hold an array, but UINT8 takes whole numbers only"),
        ("BOOL", [1], [1], "its data hold a whole number, but BOOL takes true and false only"),
        ("BYTES", [1], [1], "its data hold a whole number, but BYTES takes strings only"),
        ("FP32", [1], [True], "its data hold a boolean, but FP32 takes numbers only"),
        ("FP32", [1], [1e39], "a number is out of range for FP32"),
        ("FP32", [1], [float("nan")], "a number is out of range for FP32"),
        ("FP64", [1], [float("inf")], "a number is out of range for FP64"),
        ("FP64", [1], [10**400], "a number is out of range for FP64"),
        ("FP16", [1], [1], "FP16 is taken as binary data only"),
        ("UINT8", [1], 1, "its data must be an array"),
        ("UINT8", [1], {"0": 1}, "its data must be an array"),
        ("UINT8", [3], [1, 2], "its data have 2 elements, but shape [3] takes 3"),
        ("UINT8", [2**50], [1, 2], "its data have 2 elements, but shape [1125899906842624] takes 1125899906842624"),
        ("UINT8", [2, 2], [[1, 2], [3]], f"{UNFIT} [2, 2]: not every array of dimension 1 has 2 elements"),
        ("UINT8", [2, 2], [[1, 2], 3], f"{UNFIT} [2, 2]: not every array of dimension 1 has 2 elements"),
        ("UINT8", [2, 2], [[1, 2]], f"{UNFIT} [2, 2]: not every array of dimension 0 has 2 elements"),
        ("UINT8", [1, 1, 2], [[1, 2]], f"{UNFIT} [1, 1, 2]: not every array of dimension 1 has 1 elements"),
        ("UINT8", [1], [[1]], "its data hold an array, but UINT8 takes whole numbers only"),
        ("UINT8", [], [[1]], "its data hold an array, but UINT8 takes whole numbers only"),
    ],
)
def test_data_that_do_not_fit_are_refused(datatype: str, shape: list[int], data: object, said: str) -> None:
    assert refusal(from_data, datatype, shape, data).startswith(said)


@pytest.mark.parametrize(("read", "data"), [(from_raw, b""), (from_data, [])])
@pytest.mark.parametrize(
    ("datatype", "shape", "said"),
    [
        ("BF16", [0], "BF16 is not taken; send FP32"),
        ("FP23", [0], "no datatype 'FP23'; did you mean 'FP32'? (taken: BOOL, UINT8,"),
        ("uint8 ", [0], "no datatype 'uint8 '"),
        (None, [0], "its datatype must be a string"),
        (["UINT8"], [0], "its datatype must be a string"),
        ("UINT8", None, "its shape must be an array of whole numbers"),
        ("UINT8", 3, "its shape must be an array of whole numbers"),
        ("UINT8", "12", "its shape must be an array of whole numbers"),
        ("UINT8", [True], "its shape must be an array of whole numbers"),
        ("UINT8", [1.0], "its shape must be an array of whole numbers"),
        ("UINT8", [[1]], "its shape must be an array of whole numbers"),
        ("UINT8", [0, -1], "its shape has a negative dimension"),
        ("UINT8", [0] * (MAX_DIMS + 1), "its shape has 9 dimensions; at most 8 are taken"),
        ("UINT8", [2**63], "its shape is too large"),
        ("UINT8", [10**4000], "its shape is too large"),
        ("UINT64", [2**30, 2**30], "its shape is too large"),
        ("BYTES", [2**31, 2**31], "its shape is too large"),
        ("FP32", [0, 2**62], "its shape is too large"),
        ("UINT8", [2**31, 0, 2**31, 2**31], "its shape is too large"),
    ],
)
def test_claims_are_judged_first(read: Any, data: object, datatype: object, shape: object, said: str) -> None:
    assert refusal(read, datatype, shape, data).startswith(said)


def test_a_tensor_may_be_empty_in_any_dimension() -> None:
    for shape in itertools.product((0, 2), (0, 3), (0, 2**40)):
        if not all(shape):
            for datatype in DATATYPES:
                assert from_raw("x", datatype, list(shape), b"").shape == shape
                if datatype != "FP16":
                    assert from_data("x", datatype, list(shape), []).shape == shape
    assert from_data("x", "UINT8", [2, 0, 3], [[], []]).shape == (2, 0, 3)


def test_what_json_cannot_say_is_refused() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(Refusal, match="which JSON cannot say") as caught:
            to_data(of_array("x", np.array([0, bad], np.float32)))
        # no fault of the client
        assert caught.value.status == 500
    with pytest.raises(Refusal, match="FP16 is sent as binary data only") as caught:
        to_data(of_array("x", np.zeros(1, np.float16)))
    assert caught.value.status == 400
    with pytest.raises(Refusal, match="no UTF-8 text") as caught:
        to_data(Tensor("x", "BYTES", (1,), [b"\xff"]))
    assert caught.value.status == 400


def test_outputs_of_text_are_bytes() -> None:
    tensor = of_array("x", np.array([["é", b"\xff"], ["", "b"]], object))
    assert (tensor.datatype, tensor.shape) == ("BYTES", (2, 2))
    assert tensor.values == ["é".encode(), b"\xff", b"", b"b"]


def test_an_output_that_the_protocol_does_not_know_is_a_fault() -> None:
    with pytest.raises(TypeError, match="no datatype for complex64"):
        of_array("x", np.zeros(1, np.complex64))


def test_long_names_are_cut_in_messages() -> None:
    with pytest.raises(Refusal) as caught:
        from_raw("n" * 10**6, "t" * 10**6, [1], b"")
    assert len(caught.value.message) < 4 * LONGEST_QUOTE
