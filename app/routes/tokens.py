"""Text to tokens and back, without an answer: /tokenize, /detokenize, /v1/chat/completions/render."""

import asyncio

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from app.http.errors import RequestError
from app.http.fields import Fields, missing
from app.requests.catalogue import DETOKENIZE_NAMES, TOKENIZE_NAMES
from app.requests.openai import check_model, check_names, parse_continue, parse_messages, token_ids
from app.routes.openai import ChatCompletions, Endpoint
from engine.messages import ModelInfo

ASIDE_ABOVE = 10_000  # tokens; reading more of them would hold up the streams of others


class Tokenize(Endpoint):
    """POST /tokenize: the ids of a text, or of a conversation as the model's template writes it."""

    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> ASGIApp:
        fields = Fields(body)
        check_names(fields, TOKENIZE_NAMES, self.context.settings)
        check_model(fields, info, self.context.settings)
        with_names = fields.boolean("return_token_strs")
        ids = await self._ids(fields)
        names = await self._names(ids) if with_names else None
        return _json(
            {"count": len(ids), "max_model_len": info.max_model_len, "tokens": ids, "token_strs": names}
        )

    async def _ids(self, fields: Fields) -> list[int]:
        if fields.get("messages") is not None:
            for name in ("prompt", "content"):
                if fields.get(name) is not None:
                    message = f"'messages' and '{name}' exclude each other."
                    raise RequestError("invalid_value", message, name)
            messages = parse_messages(fields, self.context.text.template.tool_source is not None)
            return await self.context.render(messages, continue_final=parse_continue(fields, messages))
        name = "content" if fields.get("prompt") is None and fields.get("content") is not None else "prompt"
        prompt = fields.string(name)
        if prompt is None:
            raise missing("prompt")
        bos = fields.boolean("add_special_tokens", True)
        return (await self.context.text.encode([prompt], bos=bos))[0]

    async def _names(self, ids: list[int]) -> list[str]:
        name = self.context.text.token_name
        if len(ids) > ASIDE_ABOVE:
            return await asyncio.to_thread(lambda: [name(id) for id in ids])
        return [name(id) for id in ids]


class Detokenize(Endpoint):
    """POST /detokenize: the text of ids, special tokens as their spelling."""

    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> ASGIApp:
        fields = Fields(body)
        check_names(fields, DETOKENIZE_NAMES, self.context.settings)
        check_model(fields, info, self.context.settings)
        items = fields.items("tokens")
        if items is None:
            raise missing("tokens")
        decode = self.context.text.decode
        if len(items) > ASIDE_ABOVE:
            text = await asyncio.to_thread(lambda: decode(token_ids(items, "tokens", info)))
        else:
            text = decode(token_ids(items, "tokens", info))
        return _json({"prompt": text, "content": text})


class Render(ChatCompletions):
    """POST /v1/chat/completions/render: what the model would be given for the same body."""

    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> ASGIApp:
        prompt = await self.prompt(self.parse(body, info), info)
        text = self.context.text.decode(prompt)
        return _json({"prompt": text, "tokens": prompt, "count": len(prompt)})


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
