"""A server whose loop runs in another thread of this process, so that its engines can be watched from a test."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from gengen.serving.app import Application
from gengen.serving.server import PatientProtocol, listen, settings_of


@contextmanager
def in_a_thread(application: Application, protocol: type[PatientProtocol] = PatientProtocol) -> Iterator[str]:
    """Serve an application; yield its address. protocol: what speaks with each connection."""
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(settings_of(application, protocol))

    async def serve() -> None:
        application.start()
        await server.serve(sockets=[sock])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        application.stop()
