"""The socket that a server listens on."""

import asyncio
import socket

from gengen.serving.server import listen


def test_answers_do_not_wait_for_the_clients_acknowledgement() -> None:
    """Nagle's algorithm kept the second answer on a connection back for 40 ms: asyncio turns it off only for sockets
    that were made for TCP by name."""
    delays: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        delays.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def connect() -> None:
        sock = listen("127.0.0.1", 0)
        async with await asyncio.start_server(answer, sock=sock):
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(connect())
    assert delays and all(delays)
