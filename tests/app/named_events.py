"""Streams whose events have names."""

import json
import re


def named_events(body: str) -> list[dict[str, object]]:
    """The data of each event, all of which are an `event:` line with their type and one `data:` line."""
    found: list[dict[str, object]] = []
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}", block
        found.append(event)
    return found


def timeless(body: str) -> str:
    """Without what differs between two answers of the same text."""
    body = re.sub(r'"(created_at|system_fingerprint)": ?("[^"]*"|\d+)', r'"\1":0', body)
    return re.sub(r"\b(resp|msg|fc|call|toolu|req)_[0-9a-f]{24,}", r"\1", body)
