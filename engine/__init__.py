"""The engine: scheduling, paging, the step loop and the models.

Public names are loaded on first use, so that importing a torch-free module (`engine.messages`, `engine.text`,
`engine.flags`) loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.async_engine import AsyncEngine
    from engine.config import GPTConfig
    from engine.engine import Engine
    from engine.loader import load_model
    from engine.messages import EngineConfig
    from engine.model import GPT

__all__ = ["GPT", "AsyncEngine", "Engine", "EngineConfig", "GPTConfig", "load_model"]

_MODULES = {
    "AsyncEngine": "engine.async_engine",
    "Engine": "engine.engine",
    "EngineConfig": "engine.messages",
    "GPT": "engine.model",
    "GPTConfig": "engine.config",
    "load_model": "engine.loader",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
