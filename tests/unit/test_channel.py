"""Channels: frames arrive whole and in order, memory is never written before it was read, and a bad peer does no harm.

Memory is used for every body here, so that small ones test it; the checks that a bug must fail are functions.
"""

import contextlib
import os
import random
import socket
import stat
import tempfile
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forked import Forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roundelay import sealed, wire
from roundelay.channel import Channel, Listener, connect, connection, pair, rendezvous
from roundelay.channel.connection import ENVELOPE, FREE, INLINE, MEMORY
from roundelay.errors import ChannelClosed, ConfigError, WireError
from roundelay.wire import Frame

needs_memory = pytest.mark.skipif(not sealed.AVAILABLE, reason="sealed memory is Linux's")
Planting = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def memory_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MEMORY_FROM", 1)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = pair()
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def raw() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel whose peer is a bare socket."""
    one, other = socket.socketpair()
    end = Channel(one)
    yield end, other
    end.close()
    other.close()


def numbered(number: int, size: int = 1000) -> Frame:
    """A frame all of whose values tell its number, with a gap between its tensors."""
    values = torch.full((size,), float(number))
    return Frame("numbered", {"number": number}, {"odd": values[:3].clone(), "values": values})


def assert_numbered(frame: Frame, number: int) -> None:
    assert frame.fields["number"] == number
    for tensor in frame.tensors.values():
        assert bool((tensor == number).all())


def say(kind: int, memory: int = 0, with_descriptor: int = 0) -> bytes:
    return ENVELOPE.pack(kind, memory, with_descriptor)


# ---- frames arrive whole and in order -------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_from", [1, 1 << 62], ids=["memory", "inline"])
@pytest.mark.parametrize("size", [0, 1, 20_000])
def test_frames_go_both_ways(
    memory_from: int, size: int, ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MEMORY_FROM", memory_from)
    tensors = {"w": torch.randn(size, 1).t(), "learnt": torch.ones(3, requires_grad=True), "bit": torch.tensor(True)}
    for _ in range(3):
        for sender, receiver in (ends, ends[::-1]):
            sender.send(Frame("x", {"loss": 0.5}, tensors))
            came = receiver.receive()
            assert (came.kind, came.fields) == ("x", {"loss": 0.5})
            for name, tensor in tensors.items():
                assert torch.equal(came.tensors[name], tensor)
                assert came.tensors[name].data_ptr() % 64 == 0


def test_frames_without_a_body_and_with_many_tensors(ends: tuple[Channel, Channel]) -> None:
    many = {f"t{i}": torch.tensor([i]) for i in range(1500)}
    for frame in (Frame("bare"), Frame("empty", {}, {"e": torch.empty(0, 4)}), Frame("many", {}, many)):
        ends[0].send(frame)
        came = ends[1].receive()
        assert came.kind == frame.kind
        assert {n: t.tolist() for n, t in came.tensors.items()} == {n: t.tolist() for n, t in frame.tensors.items()}


ECHO = """
import os
from roundelay.channel import connect
from roundelay.wire import Frame
end = connect(os.environ["ADDRESS"])
while (frame := end.receive()).kind != "stop":
    end.send(Frame("echo", frame.fields, frame.tensors))
end.close()
"""


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_another_process_is_told_the_address_and_answers(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scheme == "tcp":
        monkeypatch.setattr(rendezvous, "_private_folder", lambda: None)
    listener = Listener()
    assert listener.address.startswith(f"{scheme}:")
    (tmp_path / "echo.py").write_text(ECHO)
    with Forked(tmp_path, ["echo.py"], environment={"ADDRESS": listener.address}) as peer:
        end = listener.accept(timeout_s=60)
        listener.close()
        for number, size in enumerate((1000, 700_000, 10, 1_000_000)):  # 2.8 MB: memory on both sides, and a larger one
            end.send(numbered(number, size))
            assert_numbered(end.receive(timeout_s=60), number)
        end.send(Frame("stop"))
        assert peer.wait(timeout=60) == 0
    with pytest.raises(ChannelClosed, match="after whole messages"):
        end.receive(timeout_s=60)
    end.close()


# ---- memory is not written before it was read -----------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from(["send", "send large", "receive", "release"])), max_size=40)


def check_order(steps: list[tuple[bool, str]]) -> None:
    """The contract: frames come in order and whole, and what was received last stays as it was until it is given back,
    whatever either side sends meanwhile.
    """
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(contextlib.closing(end)) for end in pair()]
        under_way: list[deque[int]] = [deque(), deque()]  # to each end
        held: list[tuple[Frame, int] | None] = [None, None]
        for number, (which, what) in enumerate(steps):
            if what == "receive" and under_way[which]:
                frame, expected = ends[which].receive(timeout_s=30), under_way[which].popleft()
                held[which] = frame, expected
            elif what == "release":
                ends[which].release()
                held[which] = None
            elif what.startswith("send"):
                ends[which].send(numbered(number, 3000 if "large" in what else 100))
                under_way[not which].append(number)
            for kept in held:
                if kept is not None:
                    assert_numbered(*kept)


def check_random_orders() -> None:
    rng = random.Random(1)
    for _ in range(30):
        check_order([(rng.random() < 0.5, rng.choice(["send", "send large", "receive", "release"])) for _ in range(40)])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_whatever_the_order_of_sending_and_receiving(steps: list[tuple[bool, str]]) -> None:
    check_order(steps)


def nobody_occupies(patch: pytest.MonkeyPatch) -> None:
    class Never(set[int]):
        def __contains__(self, memory: object) -> bool:
            return False

    made = Channel.__init__

    def init(self: Channel, *args: object) -> None:
        made(self, *args)  # type: ignore[arg-type]
        self._occupied = Never()

    patch.setattr(Channel, "__init__", init)
    patch.setattr(Channel, "_send_frees", lambda self: None)


def given_back_at_once(patch: pytest.MonkeyPatch) -> None:
    receive = Channel.receive

    def hasty(self: Channel, timeout_s: float | None = None) -> Frame:
        frame = receive(self, timeout_s)
        self.release()
        return frame

    patch.setattr(Channel, "receive", hasty)


def gaps_left_as_they_were(patch: pytest.MonkeyPatch) -> None:
    """The memory holds an earlier frame's values between the tensors of a later one."""
    patch.setattr("roundelay.header.Head.gaps", lambda self: iter(()))
    finish = wire.finish

    def strict(head: wire.Head, body: torch.Tensor, *digests: bytes) -> Frame:
        at = 0
        for place in head.places:
            assert not bool(body[at : place.start].any())
            at = place.stop
        return finish(head, body, *digests)

    patch.setattr(wire, "finish", strict)


@needs_memory
@pytest.mark.parametrize("plant", [nobody_occupies, given_back_at_once, gaps_left_as_they_were])
def test_the_check_of_orders_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    check_random_orders()
    plant(monkeypatch)
    with pytest.raises((AssertionError, WireError)):
        check_random_orders()


@needs_memory
def test_frames_that_nobody_has_read_yet_take_two_memories_and_then_the_socket(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    create = sealed.create
    monkeypatch.setattr(sealed, "create", lambda size: made.append(size) or create(size))
    for number in range(8):
        ends[0].send(numbered(number))
    assert len(made) == 2
    for number in range(8):
        assert_numbered(ends[1].receive(), number)
    for number in range(8, 30):  # all given back: request and answer go on in the same two
        ends[0].send(numbered(number))
        assert_numbered(ends[1].receive(), number)
    assert len(made) == 2
    ends[0].send(numbered(30, 5000))
    assert_numbered(ends[1].receive(), 30)
    assert len(made) == 3


def test_without_memory_the_socket_carries_everything(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: int) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(sealed, "create", none_left)
    for number in range(4):
        ends[0].send(numbered(number))
        assert_numbered(ends[1].receive(), number)


@needs_memory
def test_no_descriptor_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    one, other = pair()
    for number in range(10):
        one.send(numbered(number, 1000 * (number + 1)))
        assert_numbered(other.receive(), number)
    one.send(numbered(10, 20_000))
    one.close()
    other.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_received_outlives_the_channel() -> None:
    one, other = pair()
    one.send(numbered(5))
    frame = other.receive()
    one.close()
    other.close()
    del one, other
    assert_numbered(frame, 5)


def test_each_end_may_send_and_receive_in_two_threads(ends: tuple[Channel, Channel]) -> None:
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as failure:
                failures.append(failure)

        return threading.Thread(target=run)

    def sending(end: Channel) -> None:
        for number in range(100):
            end.send(numbered(number))

    def receiving(end: Channel) -> None:
        for number in range(100):
            assert_numbered(end.receive(timeout_s=60), number)

    threads = [guarded(lambda work=work, end=end: work(end)) for work in (sending, receiving) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# ---- time, and the other end's end ----------------------------------------------------------------------------------


def test_a_receive_that_ran_out_of_time_loses_nothing(raw: tuple[Channel, socket.socket]) -> None:
    end, peer = raw
    message = say(INLINE) + wire.to_bytes(numbered(3, 20))
    for i in range(len(message)):
        with pytest.raises(TimeoutError, match="a whole frame did not come in time"):
            end.receive(timeout_s=0)
        peer.send(message[i : i + 1])
    assert_numbered(end.receive(timeout_s=0), 3)
    with pytest.raises(TimeoutError):
        end.receive(timeout_s=0)


def test_what_was_sent_before_the_end_still_arrives(ends: tuple[Channel, Channel]) -> None:
    ends[1].send(Frame("unread"))
    for number in range(3):
        ends[0].send(numbered(number))
    ends[0].close()
    for number in range(3):
        assert_numbered(ends[1].receive(), number)
    with pytest.raises(ChannelClosed):
        ends[1].receive()
    with pytest.raises(ChannelClosed, match="other end"):
        ends[1].send(numbered(9))


def test_an_end_within_a_frame_is_told_as_one(raw: tuple[Channel, socket.socket]) -> None:
    raw[1].sendall(say(INLINE) + wire.to_bytes(numbered(1))[:-1])
    raw[1].close()
    with pytest.raises(ChannelClosed, match="within a message"):
        raw[0].receive()


def test_a_closed_end_says_so_and_wakes_who_waits(ends: tuple[Channel, Channel]) -> None:
    woken: list[str] = []

    def wait() -> None:
        try:
            ends[0].receive()
        except ChannelClosed as error:
            woken.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    ends[0].close()
    ends[0].close()
    thread.join(timeout=60)
    assert len(woken) == 1
    for attempt in (ends[0].receive, lambda: ends[0].send(Frame("x"))):
        with pytest.raises(ChannelClosed, match="this end of the channel was closed"):
            attempt()


def test_an_interrupted_receive_ends_the_connection(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(connection, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ends[0].receive()
    for end in ends:
        with pytest.raises(ChannelClosed):
            end.receive()


def test_a_frame_that_cannot_be_sent_does_no_harm(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(WireError):
        ends[0].send(Frame("x", {"t": (1, 2)}))
    ends[0].send(Frame("y"))
    assert ends[1].receive().kind == "y"


# ---- a bad peer -----------------------------------------------------------------------------------------------------


def frame_in_memory(size: int = 1000) -> tuple[bytes, bytes]:
    """Return a frame's bytes without its body, and its body."""
    head = wire.head_of(numbered(1, size))
    body = wire.body_of(head, numbered(1, size).tensors)
    return head.raw + wire.digest(head.raw, body), b"".join(body)


def memory_file(content: bytes, seal: bool = True, sparse: int = 0) -> int:
    import fcntl

    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    if sparse:
        os.ftruncate(descriptor, sparse)
    if seal:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return descriptor


def plain_file() -> int:
    with tempfile.TemporaryFile() as file:
        file.write(frame_in_memory()[1])
        file.flush()
        return os.dup(file.fileno())


def with_rights(peer: socket.socket, data: bytes, *descriptors: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    peer.sendmsg([data], rights)
    for descriptor in descriptors:
        os.close(descriptor)


def whole() -> bytes:
    return frame_in_memory()[1]


BAD: dict[str, tuple[str, bytes, Callable[[], list[int]]]] = {
    "noise": ("expected a frame", b"GET / HTTP/1.1\r\n\r\n", list),
    "an unknown message": ("expected a frame", say(4), list),
    "a third memory": ("expected a frame", say(MEMORY, 2), list),
    "a memory freed that was never sent": ("expected a frame", say(FREE, 0), list),
    "a frame that is none": ("a frame begins with b'rdl-wire'", say(INLINE) + bytes(100), list),
    "a damaged frame": ("digest", say(INLINE) + wire.to_bytes(Frame("x"))[:-1] + b"?", list),
    "a memory that never came": ("said to lie in no memory", say(MEMORY) + frame_in_memory()[0], list),
    "a descriptor that never came": ("1 descriptors were announced, 0 came", say(MEMORY, 0, 1), list),
    "a descriptor unannounced": ("0 descriptors were announced, 1 came", say(MEMORY), lambda: [memory_file(whole())]),
    "two descriptors": ("2 descriptors came", say(MEMORY, 0, 1), lambda: [memory_file(b"a"), memory_file(b"b")]),
    "a memory that may shrink": ("not sealed", say(MEMORY, 0, 1), lambda: [memory_file(whole(), seal=False)]),
    "a file": ("not sealed", say(MEMORY, 0, 1), lambda: [plain_file()]),
    "a pipe": ("not sealed", say(MEMORY, 0, 1), lambda: [os.dup(1)]),
    "an empty memory": ("has 0 bytes", say(MEMORY, 0, 1), lambda: [memory_file(b"")]),
    "a memory beyond the limits": (
        "has 8589934592 bytes", say(MEMORY, 0, 1), lambda: [memory_file(b"a", sparse=8 << 30)],
    ),
    "a memory of holes": (
        "claims 1048576 bytes and has 4096", say(MEMORY, 0, 1), lambda: [memory_file(b"a", sparse=1 << 20)],
    ),
    "a memory that is too small": (
        "said to lie in a memory of 4064 bytes", say(MEMORY, 0, 1) + frame_in_memory(2000)[0],
        lambda: [memory_file(whole())],
    ),
    "a memory with another body": (
        "digest", say(MEMORY, 0, 1) + frame_in_memory()[0], lambda: [memory_file(b"!" + whole()[1:])],
    ),
}  # fmt: skip


def check_bad_peers() -> None:
    """The contract: a ``WireError`` with its own reason, no descriptor kept, and the connection has ended."""
    for what, (expected, data, descriptors) in BAD.items():
        before = len(os.listdir("/proc/self/fd"))
        one, peer = socket.socketpair()
        with contextlib.closing(Channel(one)) as end, peer:
            with_rights(peer, data, *descriptors())
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(WireError, match=expected):
                end.receive(timeout_s=30)
            with pytest.raises(ChannelClosed):
                end.receive(timeout_s=30)
        assert len(os.listdir("/proc/self/fd")) == before, what


@needs_memory
def test_a_bad_peer_is_refused_and_leaves_nothing() -> None:
    check_bad_peers()


@needs_memory
def test_the_peers_of_these_checks_are_refused_for_their_fault_alone(raw: tuple[Channel, socket.socket]) -> None:
    with_rights(raw[1], say(MEMORY, 0, 1) + frame_in_memory()[0], memory_file(whole().ljust(8192)))
    assert_numbered(raw[0].receive(), 1)


def attach_believing(descriptor: int, most_bytes: int) -> torch.Tensor:
    return sealed._mapped(descriptor, os.fstat(descriptor).st_size)


def attach_leaking(descriptor: int, most_bytes: int) -> torch.Tensor:
    copy = os.dup(descriptor)
    try:
        return ATTACH(descriptor, most_bytes)
    except WireError:
        LEAKED.append(copy)
        raise


ATTACH, LEAKED = sealed.attach, list[int]()


@needs_memory
@pytest.mark.parametrize("attach", [attach_believing, attach_leaking])
def test_the_check_of_bad_peers_catches(
    attach: Callable[[int, int], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "attach", attach)
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError, ChannelClosed)):
        check_bad_peers()
    while LEAKED:
        os.close(LEAKED.pop())


# ---- listening ------------------------------------------------------------------------------------------------------


def test_the_folder_is_private_and_goes_with_the_listener() -> None:
    listener = Listener()
    folder = Path(listener.address.removeprefix("unix:")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(TimeoutError, match="a peer did not come in time"):
        listener.accept(timeout_s=0)
    near = connect(listener.address)
    far = listener.accept(timeout_s=30)
    listener.close()
    assert not folder.exists()
    near.send(Frame("still"))
    assert far.receive().kind == "still"
    near.close()
    far.close()


def test_a_temporary_folder_with_a_long_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with contextlib.closing(Listener()) as listener:
        assert str(long) not in listener.address
        connect(listener.address).close()
    assert list(long.iterdir()) == []


def test_over_tcp_only_who_knows_the_token_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_private_folder", lambda: None)
    monkeypatch.setattr(rendezvous, "TOKEN_WAIT_S", 0.0)
    with contextlib.closing(Listener()) as listener:
        _, host, port, token = listener.address.split(":")
        strangers = [socket.create_connection((host, int(port))) for _ in range(3)]
        strangers[0].sendall(b"0" * len(token))
        strangers[1].close()
        with pytest.raises(TimeoutError):
            listener.accept(timeout_s=0)
        for stranger in (strangers[0], strangers[2]):
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
            stranger.close()
        near = connect(listener.address)
        far = listener.accept(timeout_s=30)
        near.send(numbered(4, 100_000))
        assert_numbered(far.receive(timeout_s=30), 4)
        near.close()
        far.close()


def test_nobody_at_the_address(tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path / 'nobody'}", "tcp:127.0.0.1:1:secret"):
        with pytest.raises(ChannelClosed, match="nobody listens at") as caught:
            connect(address)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["", "unix:", "http://x", "tcp:1", "tcp:a:b:c", "tcp:127.0.0.1:99999:t", "tcp:h:1:"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="expected an address unix:PATH or tcp:HOST:PORT:TOKEN"):
        connect(address)
