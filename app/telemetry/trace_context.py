"""W3C Trace Context: which trace a request belongs to, and who we are in it.

https://www.w3.org/TR/trace-context/ : `traceparent` is version-traceid-parentid-flags in lower-case
hexadecimal digits.
"""

import re
import secrets
from dataclasses import dataclass

_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """`parent_id` is the caller's span, "" where the trace begins here; `span_id` is ours."""

    trace_id: str
    parent_id: str
    span_id: str
    sampled: bool

    def header(self) -> bytes:
        """As whom we introduce ourselves, in version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}".encode()


def trace_context(headers: list[tuple[bytes, bytes]]) -> TraceContext | None:
    """From a request's headers (names in lower case); None where there is none, or no valid one.

    A version that we do not know may have more at its end, and is read as far as we know it.
    """
    values = [value for name, value in headers if name == b"traceparent"]
    found = _FORM.fullmatch(values[0].strip(b" \t")) if len(values) == 1 else None
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not int(trace, 16) or not int(parent, 16):
        return None
    return TraceContext(trace.decode(), parent.decode(), secrets.token_hex(8), bool(int(flags, 16) & 1))
