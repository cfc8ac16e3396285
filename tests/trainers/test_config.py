"""What configurations take and refuse."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trainers.config import (
    Dimension,
    EvaluationConfig,
    Knn,
    LinearProbe,
    Spectrum,
    SubvectorProbe,
    absolute,
)

DIMENSION: TypeAdapter[int | str] = TypeAdapter(Dimension)


@pytest.mark.parametrize(
    ("value", "features"),
    [(360, 360), (1, 1), ("360/2048", 360), ("1/1", 2048), ("1/999999999", 1)],
)
def test_a_dimension_is_a_count_or_a_fraction_of_d(value: int | str, features: int) -> None:
    assert DIMENSION.validate_python(value) == value
    assert absolute(value, 2048) == features


@pytest.mark.parametrize(
    "value",
    [
        "1e-3000000",
        "1e-3",
        "half",
        "",
        " 1/2",
        "1/2/3",
        "-1/2",
        "1_0/20",
        "٣/٤",
        "0." + "1" * 10_000,
        "1",
        "1.0",
        "0.25",
        True,
        None,
        1.0,
        0.25,
        360.0,
        float("nan"),
    ],
)
def test_a_float_and_other_text_are_refused_at_once(value: object) -> None:
    """1 is a single feature, and 1.0 or "1" might be read as all of them."""
    started = time.perf_counter()
    with pytest.raises(ValidationError, match=r'expected an integer, or a fraction of D such as "360/2048"'):
        DIMENSION.validate_python(value)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("value", ["2049/2048", "0/2048", "1/0"])
def test_a_fraction_outside_its_range_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match=r"expected a fraction of D in \(0, 1\]"):
        DIMENSION.validate_python(value)


@given(st.integers(1, 10**9 - 1), st.integers(1, 10**9 - 1))
def test_every_proper_fraction_is_taken(one: int, other: int) -> None:
    text = f"{min(one, other)}/{max(one, other)}"
    assert DIMENSION.validate_python(text) == text


def test_an_evaluation_knows_its_kind_and_a_union_of_them_still_asks_for_it() -> None:
    union: TypeAdapter[EvaluationConfig] = TypeAdapter(EvaluationConfig)
    for model in (LinearProbe, SubvectorProbe, Knn, Spectrum):
        plain = model.model_validate({})
        assert plain == model.model_validate({"kind": plain.kind})
        assert type(union.validate_python({"kind": plain.kind})) is model
        assert plain.model_dump()["kind"] == plain.kind
    with pytest.raises(ValidationError, match="Unable to extract tag using discriminator 'kind'"):
        union.validate_python({"k": 5})
    with pytest.raises(ValidationError):
        Knn.model_validate({"kind": "spectrum"})
