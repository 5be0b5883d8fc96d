"""Which cases of a test every run has, and which only `make test-all`."""

from collections.abc import Collection, Iterable

import pytest
from _pytest.mark import ParameterSet


def tiered(cases: Iterable[object], quick: Collection[int]) -> list[ParameterSet]:
    """Cases for parametrize, of which those at the places `quick` are in every run. A tuple is one value for
    each argument.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if place in quick else pytest.mark.slow
        )
        for place, case in enumerate(cases)
    ]
