"""Which process this is, and what it does before it ends."""

import asyncio
import sys
from collections.abc import Callable


def in_server_process() -> bool:
    """Return whether this process answers requests: trainings build the app too, in their own."""
    return "monailabel.app" in sys.modules


def at_shutdown(action: Callable[[], object]) -> None:
    """Call `action` when the running event loop ends: after the last request, before Python waits for threads.

    One of these is MONAI Label's, which waits for the training: a server that is asked to stop would go on
    until that is done (defect 10).
    """
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        try:
            await loop.create_future()
        finally:
            action()

    task = loop.create_task(wait())
    _waiting.add(task)
    task.add_done_callback(_waiting.discard)


_waiting: set[asyncio.Task[None]] = set()
"""An event loop itself holds its tasks weakly."""
