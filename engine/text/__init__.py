"""Text on one side, token ids on the other: tokenizers, chat templates, incremental decoding, stop strings.

Nothing here imports torch; the front end uses it.
"""

from engine.text.decode import IncrementalDecoder
from engine.text.files import has_tokenizer, load_tokenizer, save_tokenizer
from engine.text.standin import PlainTemplate, StandInTokenizer
from engine.text.stop import StopMatcher
from engine.text.template import (
    ChatMessage,
    ChatTemplate,
    NanochatTemplate,
    TemplateError,
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
    "NANOCHAT_PATTERN",
    "NANOCHAT_SPECIALS",
    "BytePairTokenizer",
    "ChatMessage",
    "ChatTemplate",
    "IncrementalDecoder",
    "NanochatTemplate",
    "PlainTemplate",
    "StandInTokenizer",
    "StopMatcher",
    "TemplateError",
    "Tokenizer",
    "TokenizerError",
    "has_tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "save_tokenizer",
]
