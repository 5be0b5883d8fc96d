"""The JSON Schemas that /openapi.json refers to: the parts of bodies, and what the routes answer."""

from collections.abc import Mapping

from app.requests.catalogue import ANY, BOOLEAN, STRING, TOKEN, Schema, items
from app.requests.openai import ROLES

INTEGER: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
OBJECT: Schema = {"type": "object"}


def ref(name: str) -> dict[str, object]:
    return {"$ref": f"#/components/schemas/{name}"}


def shape(optional: Mapping[str, Schema] | None = None, /, **properties: Schema) -> dict[str, object]:
    """An object with these properties, all of them required but the optional ones."""
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
    }


def schemas() -> dict[str, object]:
    null_string: Schema = {"type": ["string", "null"]}
    null_object: Schema = {"type": ["object", "null"]}
    part = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": STRING},
        "required": ["type", "text"],
    }
    finish: Schema = {"enum": ["stop", "length", "tool_calls", "content_filter"]}
    choice: dict[str, Schema] = {"index": INTEGER, "logprobs": null_object, "finish_reason": finish}
    more: dict[str, Schema] = {
        "stop_reason": {"type": ["string", "integer", "null"]},
        "token_ids": items(TOKEN),
    }
    answer: dict[str, Schema] = {
        "id": STRING,
        "created": INTEGER,
        "model": STRING,
        "usage": ref("Usage"),
        "system_fingerprint": STRING,
        "seed": {"type": "integer"},
    }
    message = shape(
        {"tool_calls": items(ref("ToolCall"))},
        role={"const": "assistant"},
        content=null_string,
        refusal={"type": "null"},
    )
    return {
        "Message": shape(
            {
                "content": {"anyOf": [STRING, items(part), {"type": "null"}]},
                "tool_calls": {"anyOf": [items(ref("ToolCall")), {"type": "null"}]},
                "tool_call_id": null_string,
            },
            role={"enum": [*ROLES, "tool"]},
        ),
        "ToolCall": shape(
            id=STRING, type={"const": "function"}, function=shape(name=STRING, arguments=STRING)
        ),
        "Error": shape(
            {"detail": STRING},
            error=shape(message=STRING, type=STRING, param=null_string, code=STRING),
        ),
        "Usage": shape(
            prompt_tokens=INTEGER,
            completion_tokens=INTEGER,
            total_tokens=INTEGER,
            prompt_tokens_details=shape({"cached_tokens": INTEGER}),
        ),
        "ChatCompletion": shape(
            {"prompt_token_ids": items(TOKEN)},
            object={"const": "chat.completion"},
            choices=items(shape(more, message=message, **choice), least=1),
            **answer,
        ),
        "Completion": shape(
            object={"const": "text_completion"},
            choices=items(shape({**more, "prompt_token_ids": items(TOKEN)}, text=STRING, **choice), least=1),
            **answer,
        ),
        **_response_shapes(),
        **_message_shapes(),
        "Rendered": shape(prompt=STRING, tokens=items(TOKEN), count=INTEGER),
        "Tokenized": shape(
            count=INTEGER,
            max_model_len=INTEGER,
            tokens=items(TOKEN),
            token_strs={"anyOf": [items(STRING), {"type": "null"}]},
        ),
        "Detokenized": shape(prompt=STRING, content=STRING),
        "Model": shape(
            id=STRING,
            object={"const": "model"},
            created=INTEGER,
            owned_by=STRING,
            root=STRING,
            parent={"type": "null"},
            max_model_len=INTEGER,
            meta=_model_meta(),
        ),
        "Models": shape(object={"const": "list"}, data=items(ref("Model"))),
        "Deleted": shape(id=STRING, object={"const": "stream"}, deleted={"const": True}),
        "Cancelled": shape(id=STRING, cancelled={"const": True}),
        **_status_shapes(),
    }


def _model_meta() -> dict[str, object]:
    """What a model's card says of the model and of this server."""
    return shape(
        n_vocab=INTEGER,
        n_ctx_train=INTEGER,
        n_params=INTEGER,
        size=INTEGER,
        generation=STRING,
        device=STRING,
        dtype=STRING,
        max_rows=INTEGER,
        block_size=INTEGER,
        num_blocks=INTEGER,
        max_num_blocks=INTEGER,
        sampling_defaults=OBJECT,
        resumable_streams=BOOLEAN,
        features=items(shape(feature=STRING, asked=STRING, used=STRING, why=STRING)),
    )


def _status_shapes() -> dict[str, object]:
    """Of the routes that tell how the server is."""
    null_string: Schema = {"type": ["string", "null"]}
    return {
        "Health": shape(
            status={"const": "ok"},
            ready=BOOLEAN,
            num_gpus=INTEGER,
            available_workers=INTEGER,
            version=STRING,
        ),
        "Ready": shape(ready=BOOLEAN, state=STRING),
        "Generated": shape(status={"const": "ok"}, seconds=NUMBER, age_seconds=NUMBER),
        "Version": shape(
            version=STRING,
            python=STRING,
            torch=null_string,
            model=null_string,
            generation=null_string,
            device=null_string,
            dtype=null_string,
        ),
        "Stats": shape(
            state=STRING,
            model=null_string,
            running=INTEGER,
            waiting=INTEGER,
            open_answers=INTEGER,
            tokens_per_second=NUMBER,
            ttft_p50_seconds=ANY,
            ttft_p95_seconds=ANY,
        ),
    }


def _response_shapes() -> dict[str, object]:
    """Of /v1/responses."""
    parts = {
        "type": "object",
        "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": STRING},
        "required": ["type", "text"],
    }
    null_object: Schema = {"type": ["object", "null"]}
    content: Schema = {"anyOf": [STRING, items(parts)]}
    return {
        "InputItem": {
            "anyOf": [
                shape({"type": {"enum": ["message", None]}}, role={"enum": list(ROLES)}, content=content),
                shape(
                    type={"const": "function_call"},
                    call_id=STRING,
                    name=STRING,
                    arguments={"type": ["string", "null"]},
                ),
                shape(type={"const": "function_call_output"}, call_id=STRING, output=content),
            ]
        },
        "Response": shape(
            id=STRING,
            object={"const": "response"},
            created_at=INTEGER,
            status={"enum": ["completed", "incomplete"]},
            error=null_object,
            incomplete_details=null_object,
            model=STRING,
            output=items(shape(type={"enum": ["message", "function_call"]}, id=STRING, status=STRING)),
            store={"const": False},
            usage=shape(
                input_tokens=INTEGER,
                input_tokens_details=shape(cached_tokens=INTEGER),
                output_tokens=INTEGER,
                output_tokens_details=shape(reasoning_tokens=INTEGER),
                total_tokens=INTEGER,
            ),
            system_fingerprint=STRING,
            seed={"type": "integer"},
        ),
    }


def _message_shapes() -> dict[str, object]:
    """Of /v1/messages."""
    null_integer: Schema = {"type": ["integer", "null"]}
    block = shape(type={"const": "text"}, text=STRING)
    texts: Schema = {"anyOf": [STRING, items(block), {"type": "null"}]}
    blocks: Schema = {
        "anyOf": [
            block,
            shape(
                {"input": {"type": ["object", "null"]}}, type={"const": "tool_use"}, id=STRING, name=STRING
            ),
            shape({"content": texts}, type={"const": "tool_result"}, tool_use_id=STRING),
        ]
    }
    return {
        "TextBlock": block,
        "Turn": shape(role={"enum": ["user", "assistant"]}, content={"anyOf": [STRING, items(blocks)]}),
        "AnthropicMessage": shape(
            id=STRING,
            type={"const": "message"},
            role={"const": "assistant"},
            model=STRING,
            content=items(shape(type={"enum": ["text", "tool_use"]})),
            stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            stop_sequence={"type": ["string", "null"]},
            usage=shape(
                input_tokens=INTEGER,
                output_tokens=INTEGER,
                cache_read_input_tokens=null_integer,
                cache_creation_input_tokens=null_integer,
            ),
            seed={"type": "integer"},
        ),
        "TokenCount": shape(input_tokens=INTEGER),
        "AnthropicError": shape(
            type={"const": "error"}, error=shape(type=STRING, message=STRING), request_id=STRING
        ),
    }
