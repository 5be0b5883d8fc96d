"""Text on one side, token ids on the other: tokenizers, chat templates, incremental decoding, stop strings.

Nothing here imports torch; the front end uses it.
"""

from engine.text.call_format import CALL_FORMATS, CallFormat, detect_call_format
from engine.text.calls import (
    CallArguments,
    CallBegan,
    CallBroken,
    CallEnded,
    CallEvent,
    CallParser,
    Said,
)
from engine.text.decode import IncrementalDecoder
from engine.text.files import has_tokenizer, load_tokenizer, save_tokenizer
from engine.text.standin import PlainTemplate, StandInTokenizer
from engine.text.stop import StopMatcher
from engine.text.template import (
    ChatMessage,
    ChatTemplate,
    NanochatTemplate,
    TemplateError,
    Tool,
    ToolCall,
    load_chat_template,
)
from engine.text.tokenizer import (
    NANOCHAT_PATTERN,
    NANOCHAT_SPECIALS,
    BytePairTokenizer,
    Tokenizer,
    TokenizerError,
)

__all__ = [
    "CALL_FORMATS",
    "NANOCHAT_PATTERN",
    "NANOCHAT_SPECIALS",
    "BytePairTokenizer",
    "CallArguments",
    "CallBegan",
    "CallBroken",
    "CallEnded",
    "CallEvent",
    "CallFormat",
    "CallParser",
    "ChatMessage",
    "ChatTemplate",
    "IncrementalDecoder",
    "NanochatTemplate",
    "PlainTemplate",
    "Said",
    "StandInTokenizer",
    "StopMatcher",
    "TemplateError",
    "Tokenizer",
    "TokenizerError",
    "Tool",
    "ToolCall",
    "detect_call_format",
    "has_tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "save_tokenizer",
]
