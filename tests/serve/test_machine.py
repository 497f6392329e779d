"""A server under any order of what clients and devices do: each output ends once, as it should."""

import contextlib
import threading

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, precondition, rule

from jaxinfer.errors import StepFailed
from serve.proto import inference_pb2 as pb
from serve.rpc.convert import read_params
from serve.settings import ServeSettings
from tests.engine.fake_runner import oracle
from tests.engine.house import VOCAB, full_group
from tests.serve.background import background

MAX_LEN = 48
#: How a call may end that was accepted, or was not.
STATUSES = {
    "OK",
    "CANCELLED",
    "ALREADY_EXISTS",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL",
    "UNAVAILABLE",
}
CUT_SHORT = {pb.ABORT, pb.DEADLINE, pb.ERROR}


class Call:
    """A stream, and a thread that reads it once it may."""

    def __init__(self, stub, request: pb.GenerateRequest, timeout: float | None, *, reads: bool):
        self.request = request
        self.events: list[pb.GenerateEvent] = []
        self.status = "OK"
        self.reads = threading.Event()
        if reads:
            self.reads.set()
        self._stream = stub.GenerateStream(request, timeout=timeout)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def cancel(self) -> None:
        self._stream.cancel()

    def wait(self) -> None:
        self.reads.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a stream does not end"

    def _read(self) -> None:
        self.reads.wait(60)
        try:
            for event in self._stream:
                self.events.append(event)
        except grpc.RpcError as error:
            self.status = error.code().name


class ServerMachine(RuleBasedStateMachine):
    calls = Bundle("calls")

    def __init__(self):
        super().__init__()
        self._stack = contextlib.ExitStack()
        self.server = self._stack.enter_context(
            background(
                ServeSettings(grpc_port=0, max_pending_tokens=150),
                max_model_len=MAX_LEN,
                max_num_seqs=3,
                num_pages=30,
                max_waiting_requests=12,
                decode_steps=(1, 3),
            )
        )
        self.faults = self.server.tested.faults
        self.all: list[Call] = []
        self.hangs = False

    @rule(
        target=calls,
        name=st.sampled_from(["", "", "a", "b"]),
        prompt=st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=20),
        sampling=st.builds(
            pb.Sampling,
            n=st.integers(1, 3),
            seed=st.integers(0, 2),
            bad_words=st.sampled_from([[], [], ["ab"], ["c"]]),
        ),
        stopping=st.builds(
            pb.Stopping,
            max_tokens=st.integers(1, 40),
            min_tokens=st.sampled_from([0, 0, 1]),
            stop=st.sampled_from([[], [], ["ab"], ["c", "ddd"]]),
            stop_token_ids=st.sampled_from([[], [3]]),
            ignore_eos=st.booleans(),
        ),
        output=st.builds(pb.Output, logprobs=st.sampled_from([None, None, 2])),
        priority=st.integers(-1, 1),
        timeout=st.sampled_from([None, None, 0.11, 0.2, 0.5]),
        reads=st.sampled_from([True, True, False]),
    )
    def submit(self, name, prompt, sampling, stopping, output, priority, timeout, reads):
        request = pb.GenerateRequest(
            request_id=name,
            token_ids=pb.TokenIds(ids=prompt),
            sampling=sampling,
            stopping=stopping,
            output=output,
            priority=priority,
        )
        call = Call(self.server.stub, request, timeout, reads=reads)
        self.all.append(call)
        return call

    @rule(call=calls)
    def cancel(self, call):
        call.cancel()

    @rule(call=calls)
    def read(self, call):
        call.reads.set()

    @rule(name=st.sampled_from(["a", "b"]))
    def abort(self, name):
        with contextlib.suppress(grpc.RpcError):
            self.server.stub.Abort(pb.AbortRequest(request_id=name), timeout=60)

    @rule(message=st.binary(max_size=20))
    def send_noise(self, message):
        noise = self.server.channel.unary_unary("/jaxinfer.v1.Inference/Generate")
        with pytest.raises(grpc.RpcError):
            noise(b"\x12\xff" + message, timeout=60)

    @rule(seconds=st.sampled_from([0.0, 0.005]))
    def dawdle(self, seconds):
        self.faults.delay = seconds

    @rule()
    def hang(self):
        self.faults.hang()
        self.hangs = True

    @rule()
    def go_on(self):
        self.faults.go_on()
        self.hangs = False

    @precondition(lambda self: not self.hangs)
    @rule(
        where=st.sampled_from(["launch", "sample", "read"]),
        error=st.sampled_from([StepFailed, ValueError]),
    )
    def fail(self, where, error):
        self.faults.fail_next(where, error("a fault that was asked for"))
        with contextlib.suppress(grpc.RpcError):  # it meets the fault, and a step that is finished
            self.server.tokens()

    @precondition(lambda self: len(self.all) > 5 and not self.hangs)
    @rule(seconds=st.sampled_from([0.0, 0.1]))
    def drain(self, seconds):
        self.server.drain(seconds)

    @precondition(lambda self: not self.hangs)
    @rule()
    def check_canary(self):
        with contextlib.suppress(grpc.RpcError):  # a full queue
            assert self.server.tokens() == self.server.canary

    def teardown(self):
        try:
            self.faults.go_on()
            self.faults.delay = 0.0
            for call in self.all:
                call.wait()
            for call in self.all:
                self.check(call)
            self.server.assert_unharmed()
            assert not self.server.tested.server.has_failed
        finally:
            self.faults.go_on()
            self._stack.close()

    def check(self, call):
        assert call.status in STATUSES
        kinds = [event.WhichOneof("event") for event in call.events]
        if not kinds:
            assert call.status != "OK"
            return
        assert kinds[0] == "prompt"
        for index in range(call.request.sampling.n):
            mine = [
                (kind, getattr(event, kind))
                for kind, event in zip(kinds, call.events, strict=True)
                if kind in ("delta", "finished") and getattr(event, kind).index == index
            ]
            ends = [part for kind, part in mine if kind == "finished"]
            # A client that does not read in time drops what has come when its own clock says so.
            if call.status in ("CANCELLED", "DEADLINE_EXCEEDED"):
                assert len(ends) <= 1
            else:
                assert len(ends) == 1, (call.status, call.request)
            if ends:
                assert mine[-1][0] == "finished"
            tokens = [token for kind, part in mine if kind == "delta" for token in part.token_ids]
            self.check_tokens(call.request, index, tokens, ends)

    def check_tokens(self, request, index, tokens, ends):
        """They are what a plain loop says, or a beginning of that."""
        params = read_params(request)
        words = [[ord(letter) - 97 for letter in word] for word in params.bad_words]
        expected, _, _ = oracle(
            list(request.token_ids.ids),
            params,
            index=index,
            max_tokens=min(params.max_tokens, MAX_LEN - len(request.token_ids.ids)),
            vocab_size=VOCAB,
            groups=(full_group(),),
            banned=lambda generated: frozenset(
                word[-1] for word in words if (generated + word[-1:])[-len(word) :] == word
            ),
        )
        assert tokens == expected[: len(tokens)]
        is_whole = ends and ends[0].reason not in CUT_SHORT and not params.stop
        if is_whole:
            assert tokens == expected


TestServerMachine = ServerMachine.TestCase
TestServerMachine.settings = settings(
    max_examples=15,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class LongServerMachine(ServerMachine):
    """The same for longer."""


TestLongServerMachine = pytest.mark.slow(LongServerMachine.TestCase)
TestLongServerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
