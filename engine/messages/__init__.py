"""What crosses the border between the front end and the engine.

`wire` holds the messages and their framing, `config` what an engine is started with, `streams` the mailboxes
that turn step frames back into one stream per choice, `client` the interface that both transports (a child
process, the same event loop) offer. Nothing here knows about text, HTTP or torch.
"""

from engine.messages.client import EngineClient, EngineState, EngineUnavailable
from engine.messages.config import (
    AttentionName,
    BatchingMode,
    DecodePathName,
    EngineConfig,
    LinearName,
    check_pool,
)
from engine.messages.streams import Delta, Fanout, Lane, StreamRouter, TokenStream
from engine.messages.wire import (
    Abort,
    EngineStats,
    Failed,
    Finish,
    Frame,
    ModelInfo,
    PromptLogprobs,
    Ready,
    Request,
    SamplingParams,
    Shutdown,
    Started,
    Submit,
    TokenLogprobs,
)

__all__ = [
    "Abort",
    "AttentionName",
    "BatchingMode",
    "DecodePathName",
    "Delta",
    "EngineClient",
    "EngineConfig",
    "EngineState",
    "EngineStats",
    "EngineUnavailable",
    "Failed",
    "Fanout",
    "Finish",
    "Frame",
    "Lane",
    "LinearName",
    "ModelInfo",
    "PromptLogprobs",
    "Ready",
    "Request",
    "SamplingParams",
    "Shutdown",
    "Started",
    "StreamRouter",
    "Submit",
    "TokenLogprobs",
    "TokenStream",
    "check_pool",
]
