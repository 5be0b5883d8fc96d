"""Everything that /openapi.json says about the server, held against the server."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from app.routes.openapi import document
from app.settings.http import HttpSettings
from tests.app.contract import Contract, contract_server
from tests.tiers import tiered

SETTINGS = HttpSettings(allow_priority=True)
DESCRIBED = schemathesis.openapi.from_dict(document(SETTINGS))
ENDLESS = "/stats/stream"
ABSENT = "/v1/embeddings"  # answers 501 on purpose
MODES = {GenerationMode.POSITIVE: 20, GenerationMode.NEGATIVE: 10}  # and how many bodies of each
CASES = [
    (path, method, mode)
    for path, methods in DESCRIBED.raw_schema["paths"].items()
    for method in methods
    for mode in MODES
    if path not in (ENDLESS, ABSENT) and (mode == GenerationMode.POSITIVE or DESCRIBED[path][method].body)
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def contract() -> Iterator[Contract]:
    with contract_server(SETTINGS) as contract:
        yield contract


@pytest.mark.parametrize(("path", "method", "mode"), tiered(CASES, range(0, len(CASES), 2)), ids=str)
def test_the_server_does_what_its_description_says(
    contract: Contract, path: str, method: str, mode: GenerationMode
) -> None:
    operation = DESCRIBED[path][method]
    varies = operation.body or operation.path_parameters

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=MODES[mode] if varies else 1,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        response = case.call(base_url=contract.url, timeout=10)
        case.validate_response(response, checks=CHECKS)
        assert response.headers["x-request-id"]

    check()
