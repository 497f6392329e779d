"""Who may call, and who sees what is said."""

import asyncio

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jaxinfer.errors import InvalidParameter
from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.rpc.server import SERVING
from serve.settings import ServeSettings
from serve.tls import TlsFiles, server_credentials
from serve.tokens import BearerTokens, read_tokens
from tests.serve.house import CANARY, channel_to, in_loop, served

GUARDED = ServeSettings(grpc_port=0, tokens=("open sesame", "xyzzy"))


def bearing(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize(
    "metadata",
    [(), bearing("sesame"), bearing(""), (("authorization", "xyzzy"),), bearing("xyzzy2")],
)
@in_loop
async def test_a_call_without_the_right_token_is_refused(metadata):
    async with served(GUARDED) as tested:
        for call in (
            tested.events(CANARY, metadata=metadata),
            tested.tokens(metadata=metadata),
            tested.stub.Abort(pb.AbortRequest(request_id="r"), metadata=metadata),
            tested.stub.GetLoad(pb.GetLoadRequest(), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "authorization" in caught.value.details()


@in_loop
async def test_each_token_opens_and_health_needs_none():
    async with served(GUARDED) as tested:
        for token in GUARDED.tokens:
            assert len(await tested.tokens(metadata=bearing(token))) == 12
        assert kinds_end(await tested.events(CANARY, metadata=bearing("xyzzy"))) == "finished"
        health = health_pb2_grpc.HealthStub(tested.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING


@in_loop
async def test_who_has_no_token_is_refused_before_anything_of_the_request_is_read():
    async with served(GUARDED) as tested:
        for method in ("/jaxinfer.v1.Inference/Generate", "/grpc.reflection.v1alpha.X/Y"):
            call = tested.channel.stream_stream(method)()  # and nothing is ever sent
            async with asyncio.timeout(20):
                assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_are_not_shown_where_settings_are():
    settings = ServeSettings(tokens=("xyzzy",), admin_tokens=("plugh",))
    assert "xyzzy" not in repr(settings)
    assert "plugh" not in repr(settings)


def kinds_end(events) -> str:
    return events[-1].WhichOneof("event")


def test_a_token_of_other_characters_is_only_wrong():
    tokens = BearerTokens(["xyzzy"])
    assert tokens.allow("bearer xyzzy")
    assert not tokens.allow("Bearer é")
    assert not tokens.allow(b"Bearer \xff")


def test_tokens_come_from_the_lines_of_a_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# who: the batch jobs\nabc\n\n def \n")
    assert read_tokens(path) == ("abc", "def")
    path.write_text("# none\n")
    with pytest.raises(InvalidParameter, match="holds none"):
        read_tokens(path)
    with pytest.raises(InvalidParameter, match="cannot be read"):
        read_tokens(tmp_path / "absent")


class Authority:
    """A certificate authority, and the files of a server."""

    def __init__(self, directory, *, mutual: bool = False):
        self.directory = directory
        self.ca = trustme.CA()
        self.files = TlsFiles(
            certificate=directory / "server.pem",
            key=directory / "server.key",
            client_ca=directory / "ca.pem" if mutual else None,
        )
        self.write()

    def write(self, ca: trustme.CA | None = None) -> None:
        issued = (ca or self.ca).issue_cert("localhost")
        self.files.key.write_bytes(issued.private_key_pem.bytes())
        self.files.certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        (self.directory / "ca.pem").write_bytes(self.ca.cert_pem.bytes())

    @property
    def settings(self) -> ServeSettings:
        return ServeSettings(grpc_port=0, tls=self.files)

    def credentials(self, client: trustme.CA | None = None, ca: trustme.CA | None = None):
        roots = (ca or self.ca).cert_pem.bytes()
        if client is None:
            return grpc.ssl_channel_credentials(roots)
        issued = client.issue_cert("client")
        key, chain = issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
        return grpc.ssl_channel_credentials(roots, key, chain)


async def canary_over(server, credentials) -> int:
    async with channel_to(server, credentials) as channel:
        response = await pb_grpc.InferenceStub(channel).Generate(CANARY, timeout=20)
        return len(response.outputs[0].token_ids)


async def refused_over(server, credentials) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await canary_over(server, credentials)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@in_loop
async def test_a_certificate_that_is_exchanged_serves_new_connections(tmp_path):
    authority, another = Authority(tmp_path), trustme.CA()
    async with served(authority.settings, authority.credentials()) as tested:
        assert len(await tested.tokens()) == 12
        await refused_over(tested.server, None)
        await refused_over(tested.server, authority.credentials(ca=another))
        authority.files.certificate.write_text("half written")
        assert await canary_over(tested.server, authority.credentials()) == 12
        authority.write(another)
        assert await canary_over(tested.server, authority.credentials(ca=another)) == 12
        await refused_over(tested.server, authority.credentials())
        assert len(await tested.tokens()) == 12  # on the connection of before


@in_loop
async def test_clients_show_a_certificate_of_the_right_authority(tmp_path):
    authority = Authority(tmp_path, mutual=True)
    async with served(authority.settings, authority.credentials(authority.ca)) as tested:
        assert len(await tested.tokens()) == 12
        await refused_over(tested.server, authority.credentials())
        await refused_over(tested.server, authority.credentials(trustme.CA()))


def test_files_that_are_not_there_are_named_before_anything_is_opened(tmp_path):
    files = TlsFiles(certificate=tmp_path / "absent.pem", key=tmp_path / "absent.key")
    with pytest.raises(InvalidParameter, match=r"absent\.pem"):
        server_credentials(files)
