"""schemathesis asks whatever the description allows, and what it does not, of a real node."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from nodes import RunningNode
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from keyva.web.openapi import DESCRIPTION

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]

METHODS = ("get", "head", "put", "post", "delete")
OPERATIONS = [
    (path, method)
    for path, item in DESCRIPTION["paths"].items()
    for method in item
    if method in METHODS and path != "/api/stats/stream"  # it does not end
]


@pytest.fixture(scope="module")
def api(node: RunningNode) -> Any:
    return schemathesis.openapi.from_url(f"{node.url}/api/openapi.json")


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_as_described(api: Any, path: str, method: str, mode: str) -> None:
    operation = api[path][method.upper()]
    negative = mode == "NEGATIVE"
    if negative and not (operation.query or operation.body):
        mode = "POSITIVE"  # any bytes are a key, and any text a condition: nothing can be wrong

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=GenerationMode[mode]))
    def ask(case: Any) -> None:
        # a list in a query may be sent as nothing at all, which is not wrong
        assume(not negative or not any(isinstance(value, list) for value in dict(case.query or {}).values()))
        case.call_and_validate(checks=[*CHECKS, *([negative_data_rejection] if negative and path.startswith("/api/") else [])])

    ask()


def test_the_description_names_every_route(http: httpx.Client) -> None:
    paths = http.get("/api/openapi.json").json()["paths"]
    assert paths.keys() == DESCRIPTION["paths"].keys()
    for path, item in paths.items():
        if "{" not in path and "get" in item and path != "/api/stats/stream":
            assert http.get(path).status_code == 200
