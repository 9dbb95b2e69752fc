"""Stopping a run on request without losing the step under way."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class RunInterrupted(KeyboardInterrupt):
    """A run was asked to stop and has saved its state; `signal_number` says by which signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """While entered, SIGINT and SIGTERM set `signal_number` instead of ending the process.

    A second SIGINT interrupts at once. Outside the main thread, where Python forbids handlers, signals keep
    their usual meaning.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
