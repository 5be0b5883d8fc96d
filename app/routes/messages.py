"""POST /v1/messages and /v1/messages/count_tokens: a conversation in Anthropic's words."""

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from app.answers.messages import MessageWriter
from app.answers.openai import Writer
from app.requests.messages import parse_counted, parse_message
from app.requests.openai import ChatRequest
from app.requests.sampling import Sampling
from app.routes.openai import Conversation, Endpoint
from engine.messages import ModelInfo


class Messages(Conversation[ChatRequest]):
    def parse(self, body: dict[str, object], info: ModelInfo) -> ChatRequest:
        context = self.context
        return parse_message(body, info, context.settings, context.text.template.tool_source)

    def writer(self, chat: ChatRequest, info: ModelInfo, sampling: Sampling) -> Writer:
        return MessageWriter(delivery=chat.delivery, text=self.context.text, seed=sampling.seed)


class CountTokens(Endpoint):
    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> ASGIApp:
        context = self.context
        turns = parse_counted(body, info, context.settings, context.text.template.tool_source)
        shown = [] if turns.tools is None else [function.shown() for function in turns.tools.functions]
        prompt = await context.render(turns.messages, continue_final=turns.continued, tools=shown)
        return Response(msgspec.json.encode({"input_tokens": len(prompt)}), media_type="application/json")
