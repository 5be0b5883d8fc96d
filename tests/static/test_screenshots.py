"""Every state of the page is reached once in a wide window, many also on a phone: axe-core finds nothing, in
light and in dark, and nothing is cut off.

`pytest tests/static/test_screenshots.py --screenshots docs/page` also writes the documentation's pictures.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.static.axe import check_axe, check_colours
from tests.static.chat_page import ChatPage
from tests.static.pictures import PHONE, WIDE, cut_off, take
from tests.static.scripted_server import ScriptedServer
from tests.static.states import STATES
from tests.tiers import tiered

pytestmark = pytest.mark.browser

ON_PHONES = ("empty", "conversation", "sidebar", "settings", "engine")  # that have a picture of their own


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path | None:
    """Where pictures go; None where none are wanted."""
    given = request.config.getoption("--screenshots", default=None)
    return None if given is None else Path(given)


@pytest.fixture(autouse=True)
def light(tab: ChatPage) -> Iterator[None]:
    yield
    tab.page.emulate_media(color_scheme="light", reduced_motion="no-preference")


@pytest.mark.parametrize("name", tiered(STATES, range(0, len(STATES), 3)))
def test_wide(name: str, chat: ChatPage, scripted: ScriptedServer, folder: Path | None) -> None:
    chat.page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    _check(chat, scripted, name, folder, name)


@pytest.mark.parametrize("name", tiered(ON_PHONES, range(1, len(ON_PHONES), 3)))
def test_phone(name: str, chat: ChatPage, scripted: ScriptedServer, folder: Path | None) -> None:
    chat.page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    _check(chat, scripted, name, folder, f"{name}-phone")


def _check(chat: ChatPage, scripted: ScriptedServer, name: str, folder: Path | None, picture: str) -> None:
    page = chat.page
    STATES[name](chat, scripted)
    check_axe(page)  # with what is shown only under the pointer
    page.mouse.move(0, 0)
    hidden = cut_off(page)
    if folder is not None:
        take(page, folder, picture)
    assert hidden == []
    page.emulate_media(color_scheme="dark")
    check_colours(page)
