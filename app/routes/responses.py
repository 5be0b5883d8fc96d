"""POST /v1/responses: OpenAI's newer route for a conversation, without a memory of earlier answers."""

from app.answers.openai import Writer
from app.answers.responses import ResponseWriter
from app.requests.responses import ResponseRequest, parse_response
from app.requests.sampling import Sampling
from app.routes.openai import Conversation, fingerprint
from engine.messages import ModelInfo


class Responses(Conversation[ResponseRequest]):
    field = "input"

    def parse(self, body: dict[str, object], info: ModelInfo) -> ResponseRequest:
        context = self.context
        return parse_response(body, info, context.settings, context.text.template.tool_source)

    def writer(self, chat: ResponseRequest, info: ModelInfo, sampling: Sampling) -> Writer:
        return ResponseWriter(
            delivery=chat.delivery,
            text=self.context.text,
            seed=sampling.seed,
            fingerprint=fingerprint(info, self.context.settings.version),
            wants_logprobs=sampling.logprobs is not None,
            echoed=chat.echoed,
        )
