"""Connections whose clients do not behave: none of them is held for long."""

import asyncio
import json
import socket
import ssl
from dataclasses import replace

import httpx
import pytest
import trustme

from jaxinfer.errors import InvalidParameter
from serve.settings import ServeSettings
from serve.tls import TlsFiles, server_context
from tests.serve.house import in_loop
from tests.serve.http.house import CANARY, ENDLESS, SETTINGS, error_of, http_served
from tests.serve.test_auth import Authority

IMPATIENT = replace(SETTINGS, http_patience=0.3)


async def raw(tested, *pieces: bytes) -> bytes:
    """What comes back for these bytes, until the server has closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", tested.server.http_port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head(length: int | str, path: str = "/v1/completions") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n".encode()


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"GET /health",),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n",),
        (head(100) + b"\r\n{",),
        (head(100, "/no-such") + b"\r\n{",),
    ],
)
@in_loop
async def test_a_client_that_does_not_go_on_is_left(pieces):
    async with http_served(IMPATIENT) as tested:
        await raw(tested, *pieces)  # it ends
        assert await tested.text()


@in_loop
async def test_a_client_that_goes_on_drop_by_drop_is_left():
    async with http_served(IMPATIENT) as tested:
        reader, writer = await asyncio.open_connection("127.0.0.1", tested.server.http_port)
        writer.write(head(10**6) + b"\r\n")
        ended = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(20):
            while not ended.done():
                writer.write(b" ")
                await asyncio.sleep(0.01)
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        (b"\x16\x03\x01" * 10,),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
        (b"GET /health HTTP/1.1\r\n\r\n",),
        (head("9" * 30) + b"\r\n{}",),
        (head(-1) + b"\r\n{}",),
        (head(2) + b"Content-Length: 3\r\n\r\n{}",),
        (head(2) + b"X: " + b"x" * 100_000 + b"\r\n",),
        (head(2), *[b"X%d: y\r\n" % index for index in range(5000)]),
        (b"GET /" + b"a" * 100_000,),
    ],
)
@in_loop
async def test_bytes_that_are_no_request_are_refused(pieces):
    async with http_served(replace(SETTINGS, http_patience=5)) as tested:
        answer = await raw(tested, *pieces)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        assert await tested.text()


def head_of(num_bytes: int) -> bytes:
    """Of a request for health, with headers that make it so long."""
    line, end = b"GET /health HTTP/1.1\r\nHost: x\r\n", b"\r\n"
    headers = b"X: y\r\n" * ((num_bytes - len(line) - 100) // 6)
    filler = num_bytes - len(line + headers + end) - len(b"X: \r\n")
    return line + headers + b"X: " + b"y" * filler + b"\r\n" + end


def too_long(answer: bytes, limit: int) -> bool:
    """Whether it says so, in the API's form, and names the limit."""
    start, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert b"x-request-id: " in start
    assert set(error) == {"message", "type", "param", "code"}
    return start.startswith(b"HTTP/1.1 431 ") and f"more than {limit} bytes" in error["message"]


@pytest.mark.parametrize("num_bytes", [16_385, 17_000, 66_000, 130_000, 600_000, 3_000_000])
@in_loop
async def test_headers_beyond_the_limit_are_refused_with_its_name_whatever_their_size(num_bytes):
    async with http_served() as tested:
        assert len(head_of(num_bytes)) == num_bytes
        assert too_long(await raw(tested, head_of(num_bytes)), 16_384)
        assert too_long(await raw(tested, b"GET /" + b"a" * num_bytes), 16_384)
        long = {"X": "y" * num_bytes}
        response = await tested.post(CANARY, **long)
        assert response.status_code == 431
        assert error_of(response)["type"] == "invalid_request_error"
        assert await tested.text()


@in_loop
async def test_headers_up_to_the_limit_are_read_and_so_is_what_follows_them():
    settings = replace(SETTINGS, max_metadata_bytes=1024)
    async with http_served(settings) as tested:
        body = json.dumps(CANARY).encode().ljust(100_000)
        first = head(len(body)) + b"\r\n" + body
        closing = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answers = await raw(tested, first + head_of(1024) + closing)
        assert answers.count(b"HTTP/1.1 200 ") == 3
        answers = await raw(tested, first + head_of(1025) + closing)
        assert answers.count(b"HTTP/1.1 200 ") == 1
        assert too_long(answers[answers.rindex(b"HTTP/1.1 ") :], 1024)


@in_loop
async def test_a_bad_chunk_after_its_answer_ends_the_connection_quietly(caplog):
    async with http_served() as tested:
        reader, writer = await asyncio.open_connection("127.0.0.1", tested.server.http_port)
        writer.write(b"POST /no HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"no chunk\r\n")
        assert b"HTTP/1.1 " not in await reader.read()
        writer.close()
        assert await tested.text()
    assert not caplog.records


@pytest.mark.parametrize("path", ["/health", "/no"])
@in_loop
async def test_a_bad_chunk_of_what_nobody_reads_is_answered_quietly(path, caplog):
    async with http_served() as tested:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        answer = await raw(tested, head + b"no chunk\r\n")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert await tested.text()
    assert not [record for record in caplog.records if record.exc_info]


@in_loop
async def test_who_sends_half_a_second_request_with_the_first_has_no_more_patience():
    async with http_served(replace(IMPATIENT, max_connections=2)) as tested:
        pieces = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + head(100) + b"\r\n{"
        answers = await raw(tested, pieces)
        assert answers.count(b"HTTP/1.1 200 ") == 1
        assert await tested.text()


@in_loop
async def test_what_was_not_taken_is_dropped_with_the_connection_however_little_it_is():
    async with http_served(IMPATIENT) as tested:
        [listener] = tested.server._http._server.servers[0].sockets
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", tested.server.http_port))
            body = json.dumps(CANARY | {"max_tokens": 60, "logprobs": 11, "n": 3}).encode()
            client.sendall(head(len(body)) + b"Connection: close\r\n\r\n" + body)
            connections = tested.server._http._server.server_state.connections
            async with asyncio.timeout(60):
                while not connections:
                    await asyncio.sleep(0.001)
                while connections:  # it has taken nothing
                    await asyncio.sleep(0.001)
        assert await tested.text()


async def unread(tested, client: socket.socket) -> None:
    """Asks for a stream that it does not read, until its request has ended all the same."""
    # Else the kernel takes megabytes before it says that nobody reads.
    [listener] = tested.server._http._server.servers[0].sockets
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", tested.server.http_port))
    body = json.dumps(ENDLESS | {"stream": True, "n": 4, "logprobs": 11}).encode()
    client.sendall(head(len(body)) + b"\r\n" + body)
    while not tested.engine.num_running:
        await asyncio.sleep(0.001)
    await tested.idle()


@in_loop
async def test_a_reader_that_takes_nothing_is_left_and_its_request_ends():
    settings = replace(IMPATIENT, max_pending_tokens=100)
    async with http_served(settings) as tested:
        with socket.socket() as client:
            await unread(tested, client)
        assert tested.house.stats.num_generated_tokens < 4 * 3900


@in_loop
async def test_a_reader_that_was_too_slow_is_told_so_when_it_reads():
    async with http_served(replace(SETTINGS, max_pending_tokens=100)) as tested:
        with socket.socket() as client:
            await unread(tested, client)
            client.setblocking(False)
            answer, loop = b"", asyncio.get_running_loop()
            while not answer.endswith(b"0\r\n\r\n"):
                came = await loop.sock_recv(client, 65536)
                assert came, "the connection has ended"
                answer += came
        *_, last, end, _, _ = answer.split(b"\r\n")
        assert end == b"0"
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error["type"] == "rate_limit_error"
        assert "waited for their reader" in error["message"]
        assert b"[DONE]" not in answer
        assert await tested.text()


async def idle_connections(tested, number: int) -> list[asyncio.StreamWriter]:
    """Which say nothing."""
    address = ("127.0.0.1", tested.server.http_port)
    return [(await asyncio.open_connection(*address))[1] for _ in range(number)]


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "before a TLS handshake"])
@in_loop
async def test_connections_beyond_the_bound_are_closed_and_the_others_are_served(has_tls, tmp_path):
    authority = HttpsAuthority(tmp_path)
    settings = replace(authority.settings if has_tls else SETTINGS, max_connections=3)
    async with http_served(settings) as tested:
        scheme, trust = ("https", authority.client(authority.ca)) if has_tls else ("http", {})
        address = f"{scheme}://localhost:{tested.server.http_port}"
        async with httpx.AsyncClient(base_url=address, timeout=20, **trust) as tested.client:
            canary = await tested.text()  # and its connection stays
            idle = await idle_connections(tested, 2)
            for _ in range(20):
                assert await raw(tested) == b""
            assert await tested.text() == canary
            for writer in idle:
                writer.close()
        async with asyncio.timeout(20):
            while True:  # until the server has seen that they left
                try:
                    async with httpx.AsyncClient(base_url=address, **trust) as tested.client:
                        assert await tested.text() == canary
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.01)


class HttpsAuthority(Authority):
    """And its clients."""

    @property
    def settings(self) -> ServeSettings:
        return replace(SETTINGS, tls=self.files)

    def client(self, authority: trustme.CA, shown: trustme.CA | None = None) -> dict:
        """Trusts one authority, and shows a certificate of another."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        if shown is not None:
            shown.issue_cert("client").configure_cert(context)
        return {"verify": context}


async def answered(tested, client) -> int:
    address = f"https://localhost:{tested.server.http_port}"
    async with httpx.AsyncClient(base_url=address, timeout=20, **client) as https:
        return (await https.post("/v1/completions", json=CANARY)).status_code


async def refused(tested, client) -> None:
    with pytest.raises(httpx.TransportError):
        await answered(tested, client)


@in_loop
async def test_a_certificate_that_is_exchanged_serves_new_connections(tmp_path):
    authority, another = HttpsAuthority(tmp_path), trustme.CA()
    async with http_served(authority.settings) as tested:
        ours, theirs = authority.client(authority.ca), authority.client(another)
        assert await answered(tested, ours) == 200
        await refused(tested, theirs)
        authority.files.certificate.write_text("half written")
        assert await answered(tested, ours) == 200
        authority.write(another)
        assert await answered(tested, theirs) == 200
        await refused(tested, ours)


@in_loop
async def test_clients_show_a_certificate_of_the_right_authority(tmp_path):
    authority, another = HttpsAuthority(tmp_path, mutual=True), trustme.CA()
    async with http_served(authority.settings) as tested:
        assert await answered(tested, authority.client(authority.ca, authority.ca)) == 200
        await refused(tested, authority.client(authority.ca))
        await refused(tested, authority.client(authority.ca, another))
        # Whom it trusts is read again, too.
        authority.files.client_ca.write_bytes(another.cert_pem.bytes())
        assert await answered(tested, authority.client(authority.ca, another)) == 200
        await refused(tested, authority.client(authority.ca, authority.ca))


def test_files_that_are_not_there_are_named_before_anything_is_opened(tmp_path):
    files = TlsFiles(certificate=tmp_path / "absent.pem", key=tmp_path / "absent.key")
    with pytest.raises(InvalidParameter, match=r"absent\.pem"):
        server_context(files)
    files.certificate.write_text("nothing")
    files.key.write_text("nothing")
    with pytest.raises(InvalidParameter, match="cannot be read"):
        server_context(files)
