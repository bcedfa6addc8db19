"""Reading and writing next to the work: iterators and callables that run in threads of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_END = object()
_LOOK = 0.1  # seconds between looks whether the other side is still there


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items, fetched in a thread, up to `depth` before they are asked for.

    What the items raise is raised here, after the items before it. A caller that stops early ends the thread.
    """
    fetched: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()
    raised: list[BaseException] = []

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                fetched.put(item, timeout=_LOOK)
                return
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # the caller's thread has to hear of it
            raised.append(error)
        finally:
            put(_END)

    thread = threading.Thread(target=fetch, name="read", daemon=True)
    thread.start()
    try:
        while (item := fetched.get()) is not _END:
            yield item  # type: ignore[misc]
        if raised:
            raise raised[0]
    finally:
        stopped.set()
        thread.join()


class Behind(Generic[T]):
    """Calls a function with items, in order, in a thread; `depth` of them may wait. Leaving the block waits for
    all, unless it is left by an error. What the function raises is raised by the next `put`, or on leaving.

    Args:
        function: is given each item.
        depth: how many wait at most.
    """

    def __init__(self, function: Callable[[T], None], depth: int = 2) -> None:
        self._function = function
        self._items: queue.Queue[object] = queue.Queue(depth)
        self._raised: BaseException | None = None
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)

    def put(self, item: T) -> None:
        """Hands an item over; waits while too many are under way.

        Raises:
            Whatever the function raised for an earlier one.
        """
        self._check()
        self._items.put(item)
        self._check()

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._given_up = value is not None
        try:
            self._items.put(_END)
            self._thread.join()
        except BaseException:  # Ctrl-C while waiting: what waits is given up, what is being written is not
            self._given_up = True
            if self._thread.is_alive():
                self._items.put(_END)
            self._thread.join()
            raise
        if value is None:
            self._check()

    def _check(self) -> None:
        if self._raised is not None:
            raise self._raised

    def _work(self) -> None:
        while (item := self._items.get()) is not _END:
            if self._raised is None and not self._given_up:
                try:
                    self._function(item)  # type: ignore[arg-type]
                except BaseException as error:  # the caller's thread has to hear of it
                    self._raised = error
