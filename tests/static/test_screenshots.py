"""Every state of the page is reached, in a wide window and on a phone, with nothing cut off.

`pytest tests/static/test_screenshots.py --screenshots docs/page` also writes the documentation's pictures.
"""

from pathlib import Path

import pytest

from tests.static.chat_page import ChatPage
from tests.static.pictures import PHONE, WIDE, cut_off, take
from tests.static.scripted_server import ScriptedServer
from tests.static.states import STATES

pytestmark = pytest.mark.browser

ON_PHONES = ("empty", "conversation", "sidebar", "settings", "engine")  # that have a picture of their own


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path | None:
    """Where pictures go; None where none are wanted."""
    given = request.config.getoption("--screenshots", default=None)
    return None if given is None else Path(given)


@pytest.mark.parametrize("name", STATES)
def test_wide(name: str, chat: ChatPage, scripted: ScriptedServer, folder: Path | None) -> None:
    _reach(chat, scripted, name, WIDE)
    hidden = cut_off(chat.page)
    if folder is not None:
        take(chat.page, folder, name)
    assert hidden == []


@pytest.mark.parametrize("name", ON_PHONES)
def test_phone(name: str, chat: ChatPage, scripted: ScriptedServer, folder: Path | None) -> None:
    _reach(chat, scripted, name, PHONE)
    hidden = cut_off(chat.page)
    if folder is not None:
        take(chat.page, folder, f"{name}-phone")
    assert hidden == []


def _reach(chat: ChatPage, scripted: ScriptedServer, name: str, size: dict[str, int]) -> None:
    chat.page.set_viewport_size(size)  # type: ignore[arg-type]
    STATES[name](chat, scripted)
    chat.page.mouse.move(0, 0)
