"""The description of the API that it serves at /api/openapi.json; a test lets schemathesis ask whatever it allows."""

from __future__ import annotations

from typing import Any

from keyva import __version__

__all__ = ["DESCRIPTION"]

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, and what to do."},
    },
}

_ETAG = {
    "ETag": {"description": "Strong entity tag of value and content type.", "schema": {"type": "string", "pattern": '^"[0-9a-f]{32}"$'}}
}
_VALUE_HEADERS = {
    **_ETAG,
    "Keyva-Content-Type": {
        "description": "kept: the Content-Type was stored with the value; sniffed: it was found out from the value.",
        "required": True,
        "schema": {"enum": ["kept", "sniffed"]},
    },
}
_ANY: dict[str, Any] = {"*/*": {"schema": {}}}

_TEXTS = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another origin.",
    404: "There is no such key.",
    408: "The request came too slowly.",
    409: "The count is another now; nothing was deleted.",
    412: "The key is not as the condition says; nothing was written.",
    413: "The body is too large.",
    414: "The key is longer than 65,536 bytes.",
    415: "Content-Type or Content-Encoding is not served here.",
    416: "The value has no such bytes.",
    421: "The Host header names another server.",
    431: "The headers are too large.",
    501: "Of transfer codings, chunked alone is known.",
    503: "The writer is being restarted, or too much is asked at once; try again.",
    504: "The answer of the writer was lost: the change may or may not have been made.",
    507: "The disk is full.",
}


def _problems(*statuses: int) -> dict[str, Any]:
    always = {400, 401, 403, 408, 414, 421, 431, 501, 503}
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": _TEXTS[status], "content": content} for status in sorted({*always, *statuses})}


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _query(name: str, text: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_MAYBE = {"type": ["string", "null"]}
_BASE64 = {"type": "string", "pattern": "^([A-Za-z0-9+/_-]{4})*([A-Za-z0-9+/_-]{2,3})?={0,2}$"}
_FREE = {"type": "object"}

_MATCH = [
    _header("If-Match", "Entity tags, or *: do it only if the key has one of them, or exists."),
    _header("If-None-Match", "Entity tags, or *: do it only if the key has none of them, or is absent. GET answers 304 otherwise."),
]
_PREFIX = [
    _query("prefix", "Text that the keys begin with.", type="string"),
    _query("prefix_base64", "The same as bytes, in URL-safe base64.", **_BASE64),
]

_STORED = {"200": {"description": "The value.", "headers": _VALUE_HEADERS, "content": _ANY}}


def _write(verb: str) -> dict[str, Any]:
    return {
        "summary": f"{verb} a value",
        "description": "Any bytes. The Content-Type that is sent is kept; without one it is sniffed when the value is read.",
        "operationId": f"{verb.lower()}Value",
        "parameters": _MATCH,
        "requestBody": {"required": False, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        "responses": {
            "201": {"description": "The key is new.", "headers": _ETAG},
            "204": {"description": "The value was replaced.", "headers": _ETAG},
            **_problems(412, 413, 415, 504, 507),
        },
    }


def _operation(operation: str, summary: str, schema: dict[str, Any], *statuses: int, parameters: Any = ()) -> dict[str, Any]:
    return {
        "summary": summary,
        "operationId": operation,
        "parameters": list(parameters),
        "responses": {"200": _json(summary, schema), **_problems(*statuses)},
    }


def _change(operation: str, summary: str, body: dict[str, Any], answer: dict[str, Any], *statuses: int) -> dict[str, Any]:
    found = _operation(operation, summary, answer, 413, 415, 504, 507, *statuses)
    return {**found, "requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


_PAGE = _object(
    "keys next",
    keys={
        "type": "array",
        "items": _object("key key_base64 size content_type", key=_MAYBE, key_base64=_STRING, size=_COUNT, content_type=_STRING),
    },
    next={**_MAYBE, "description": "`start_base64` of the next page; null at the end."},
)

_NAMED = [{"required": ["key"], "not": {"required": ["key_base64"]}}, {"required": ["key_base64"], "not": {"required": ["key"]}}]
_VALUED = [
    {"required": ["value"], "not": {"required": ["value_base64"]}},
    {"required": ["value_base64"], "not": {"required": ["value"]}},
]
_PUT = {
    "type": "object",
    "required": ["op"],
    "additionalProperties": False,
    "properties": {
        "op": {"const": "put"},
        "key": _STRING,
        "key_base64": _BASE64,
        "value": _STRING,
        "value_base64": _BASE64,
        "content_type": {"type": "string", "pattern": "^[ -~]*$", "maxLength": 255},
    },
    "allOf": [{"oneOf": _NAMED}, {"oneOf": _VALUED}],
}
_DELETE = {
    "type": "object",
    "required": ["op"],
    "additionalProperties": False,
    "properties": {"op": {"const": "delete"}, "key": _STRING, "key_base64": _BASE64},
    "oneOf": _NAMED,
}
_EXPECTED = {
    "type": "object",
    "required": ["etag"],
    "additionalProperties": False,
    "properties": {"etag": {**_MAYBE, "description": "null: absent."}, "key": _STRING, "key_base64": _BASE64},
    "oneOf": _NAMED,
}
_BATCH = {
    "type": "object",
    "required": ["operations"],
    "additionalProperties": False,
    "properties": {
        "operations": {"type": "array", "items": {"oneOf": [_PUT, _DELETE]}, "description": "At most 100,000."},
        "expect": {"type": "array", "items": _EXPECTED, "description": "At most 10,000."},
    },
}
_DELETE_PREFIX = {
    "type": "object",
    "required": ["count"],
    "additionalProperties": False,
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 2**53, "description": "How many keys the user was shown."},
        "complete": {"type": "boolean", "description": "false: the user was shown that there are at least so many."},
        "prefix": _STRING,
        "prefix_base64": _BASE64,
    },
    "oneOf": [
        {"required": ["prefix"], "not": {"required": ["prefix_base64"]}},
        {"required": ["prefix_base64"], "not": {"required": ["prefix"]}},
    ],
}

_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "Any bytes, percent-encoded; `/` may stand as it is. The empty key is `/kv/`.",
    "schema": {"type": "string", "maxLength": 65536},
}
_NAME = {
    **_KEY,
    "name": "name",
    "description": "The sequence's name: any bytes, percent-encoded.",
    "schema": {"type": "string", "maxLength": 65533},
}

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "keyva",
        "version": __version__,
        "description": "The HTTP API of a keyva node. Errors are problem documents (RFC 9457).",
    },
    "servers": [{"url": "/"}],
    "components": {
        "schemas": {"Problem": _PROBLEM},
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "Where the node has --http-token-file."}},
    },
    "security": [{}, {"token": []}],
    "paths": {
        "/kv/{key}": {
            "parameters": [_KEY],
            "get": {
                "summary": "Read a value",
                "operationId": "getValue",
                "parameters": [*_MATCH, _header("Range", "One range of bytes."), _header("If-Range", "An entity tag.")],
                "responses": {
                    **_STORED,
                    "206": {"description": "A part of the value.", "headers": _VALUE_HEADERS, "content": _ANY},
                    "304": {"description": "The value is the one that the client has.", "headers": _ETAG},
                    **_problems(404, 412, 416),
                },
            },
            "head": {
                "summary": "Read what a value is, without the value",
                "operationId": "headValue",
                "parameters": _MATCH,
                "responses": {
                    "200": {"description": "The key exists.", "headers": _VALUE_HEADERS},
                    "304": {"description": "The value is the one that the client has.", "headers": _ETAG},
                    **_problems(404, 412),
                },
            },
            "put": _write("Put"),
            "post": _write("Post"),
            "delete": {
                "summary": "Delete a key",
                "operationId": "deleteValue",
                "parameters": _MATCH,
                "responses": {"204": {"description": "The key is gone."}, **_problems(404, 412, 504, 507)},
            },
        },
        "/seq/{name}": {
            "parameters": [_NAME],
            "get": {
                "summary": "Take the next number of a sequence: 0, 1, 2 and so on, each exactly once",
                "operationId": "nextNumber",
                "responses": {
                    "200": {"description": "The number.", "content": {"text/plain": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}}},
                    **_problems(504, 507),
                },
            },
            "delete": {
                "summary": "Let a sequence begin at 0 again",
                "operationId": "resetSequence",
                "responses": {"204": {"description": "The next number is 0."}, **_problems(504, 507)},
            },
        },
        "/api/keys": {
            "get": _operation(
                "listKeys",
                "A page of keys in order",
                _PAGE,
                parameters=[
                    *_PREFIX,
                    _query("start", "The first key of the page (with reverse: the last one), inclusive.", type="string"),
                    _query("start_base64", "The same as bytes, in URL-safe base64.", **_BASE64),
                    _query("limit", "Keys of a page.", type="integer", minimum=1, maximum=1000, default=100),
                    _query("reverse", "From the last key down.", type="boolean", default=False),
                ],
            )
        },
        "/api/count": {
            "get": _operation(
                "countKeys",
                "How many keys there are; counting stops at 100,000, or after some seconds",
                _object("count complete", count=_COUNT, complete={"type": "boolean"}),
                parameters=_PREFIX,
            )
        },
        "/api/batch": {
            "post": _change("writeBatch", "Several changes: all of them or none", _BATCH, _object("operations", operations=_COUNT), 412)
        },
        "/api/delete-prefix": {
            "post": _change(
                "deletePrefix",
                "Delete all keys with a prefix, if they are as many as said",
                _DELETE_PREFIX,
                _object("deleted", deleted=_COUNT),
                409,
            )
        },
        "/api/stats": {"get": _operation("stats", "The store's figures", _FREE)},
        "/api/health": {
            "get": {
                "summary": "Whether the node lives, and serves reads and writes",
                "operationId": "health",
                "security": [{}],
                "responses": {
                    "200": _json("Ready.", _object("live ready", live={"const": True}, ready={"const": True})),
                    **_problems(),
                    "503": _json("Not ready.", _object("live ready reason", live={"const": True}, ready={"const": False}, reason=_STRING)),
                },
            }
        },
        "/api/levels": {
            "get": _operation(
                "levels", "The tree: levels and their sorted runs", _object("levels", levels={"type": "array", "items": _FREE})
            )
        },
        "/api/processes": {
            "get": _operation("processes", "The node's processes", _object("processes", processes={"type": "array", "items": _FREE}))
        },
        "/api/stats/stream": {
            "get": {
                "summary": "The figures about once a second, as server-sent events named `stats`",
                "operationId": "statsStream",
                "responses": {"200": {"description": "Events.", "content": {"text/event-stream": {"schema": _STRING}}}, **_problems()},
            }
        },
        "/metrics": {
            "get": {
                "summary": "The figures for Prometheus",
                "operationId": "metrics",
                "responses": {"200": {"description": "Text format.", "content": {"text/plain": {"schema": _STRING}}}, **_problems()},
            }
        },
        "/api/openapi.json": {
            "get": {**_operation("description", "This description", _FREE), "security": [{}]},
        },
    },
}


def _by_base64(operations: dict[str, Any]) -> dict[str, Any]:
    """Return the operations of a key under the path that takes it in base64."""
    key = {**_KEY, "description": "The key in URL-safe base64, padded or not.", "schema": {"type": "string", "maxLength": 87384}}
    named = {
        method: {**operation, "operationId": f"{operation['operationId']}ByBase64", "summary": f"{operation['summary']}, its key in base64"}
        for method, operation in operations.items()
        if method != "parameters"
    }
    return {"parameters": [key], **named}


DESCRIPTION["paths"]["/kv-base64/{key}"] = _by_base64(DESCRIPTION["paths"]["/kv/{key}"])
