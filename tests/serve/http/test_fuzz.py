"""Requests that nobody has thought of, made from what ``/openapi.json`` says, and against it."""

import asyncio

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jaxinfer.sampling_params import RequestLimits
from tests.serve.house import in_loop
from tests.serve.http.house import CHAT, COMPLETIONS, http_served

HELLO = {"messages": [{"role": "user", "content": "dbebf"}]}
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


def fuzz(address: str, max_examples: int) -> set[int]:
    """Tries all operations; the statuses that they were answered with."""
    statuses = set()
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    for operation in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if operation.ok().method == "get" and mode is GenerationMode.NEGATIVE:
                continue

            @given(case=operation.ok().as_strategy(generation_mode=mode))
            @settings(
                max_examples=max_examples,
                deadline=None,
                derandomize=max_examples < 100,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            def answered(case):
                response = case.call(timeout=20)
                statuses.add(response.status_code)
                case.validate_response(response, checks=CHECKS)

            answered()
    return statuses


@pytest.mark.parametrize("max_examples", [4, pytest.param(300, marks=pytest.mark.slow)])
@in_loop
async def test_whatever_is_asked_is_answered_as_it_was_described(max_examples):
    async with http_served(max_model_len=64, request=RequestLimits(max_n=4)) as tested:
        canary = await tested.text()
        address = str(tested.client.base_url).rstrip("/")
        statuses = await asyncio.to_thread(fuzz, address, max_examples)
        assert {200, 400} <= statuses
        await tested.idle()
        assert await tested.text() == canary


@in_loop
async def test_a_stream_is_as_it_was_described():
    async with http_served(max_model_len=64) as tested:
        schema = await asyncio.to_thread(
            schemathesis.openapi.from_url, f"{tested.client.base_url}/openapi.json"
        )
        for url, prompt in ((COMPLETIONS, {"prompt": "a"}), (CHAT, HELLO)):
            case = schema[url]["POST"].Case(
                body=prompt | {"stream": True, "max_tokens": 3}, media_type="application/json"
            )
            response = await asyncio.to_thread(case.call, timeout=20)
            assert response.headers["content-type"][0].startswith("text/event-stream")
            case.validate_response(response, checks=CHECKS)
