"""What a test needs and a machine may lack."""

import os
from typing import NoReturn

import pytest

# "1" where nothing optional may be skipped: not only, as the name says, the tests with a browser.
STRICT = "CI_REQUIRE_BROWSER"


def missing(reason: str) -> NoReturn:
    """Skips the test or the module; in CI it fails, for a test that is always skipped is no test."""
    if os.environ.get(STRICT) == "1":
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)
