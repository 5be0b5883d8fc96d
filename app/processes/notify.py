"""Tells the service manager how the server is: systemd's sd_notify, one datagram for each message.

    READY=1      requests are answered
    STOPPING=1   the drain has begun
    WATCHDOG=1   the event loop runs and the engine is heard; where it stays away for WatchdogSec, systemd
                 ends the service and starts it again

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger("fastpath")


class Notifier:
    """Speaks to the socket that NOTIFY_SOCKET names; says nothing where there is none.

    heartbeat_age: seconds since the engine was heard, 0 while there is none that could be (it is loading, or
    being restarted by the server itself).
    """

    def __init__(self, environment: Mapping[str, str], heartbeat_age: Callable[[], float]) -> None:
        self._heartbeat_age = heartbeat_age
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._interval = watchdog_seconds(environment)
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        self._send("READY=1")
        if self._interval is not None and self._timer is None:
            self._beat()

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        """A third of the time that systemd waits: one beat may be late, and one more lost."""
        assert self._interval is not None
        if self._heartbeat_age() < self._interval:
            self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._interval / 3, self._beat)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ stands for Linux's abstract names, which begin with a zero byte.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), address)
        except OSError as error:
            log.warning("the service manager could not be told %s: %s", message, error)


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """How long the service manager waits for a sign of life; None where it does not wait for this process."""
    pid, micros = environment.get("WATCHDOG_PID"), environment.get("WATCHDOG_USEC", "")
    if pid not in (None, str(os.getpid())) or not micros.isdecimal() or not int(micros):
        return None
    return int(micros) / 1e6
