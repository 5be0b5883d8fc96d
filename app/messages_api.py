"""POST /v1/messages and /v1/messages/count_tokens: a conversation in Anthropic's words."""

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from app.answers import Writer
from app.messages_events import MessageWriter
from app.messages_request import parse_counted, parse_message
from app.openai import Conversation, Endpoint
from app.sampling import Sampling
from app.schema import ChatRequest
from engine.messages import ModelInfo


class Messages(Conversation[ChatRequest]):
    def parse(self, body: dict[str, object], info: ModelInfo) -> ChatRequest:
        return parse_message(body, info, self.context.settings)

    def writer(self, chat: ChatRequest, info: ModelInfo, sampling: Sampling) -> Writer:
        return MessageWriter(delivery=chat.delivery, text=self.context.text, seed=sampling.seed)


class CountTokens(Endpoint):
    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> ASGIApp:
        messages, continued = parse_counted(body, info, self.context.settings)
        prompt = await self.context.render(messages, continue_final=continued)
        return Response(msgspec.json.encode({"input_tokens": len(prompt)}), media_type="application/json")
