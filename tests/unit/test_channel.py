"""Messages and descriptors between the processes of a machine."""

import os
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machinequeue.runner.channel import Channel, Closed, pair

messages = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none()), max_size=20)


@settings(max_examples=30)
@given(messages)
def test_messages_arrive_whole_and_in_order(sent: list[dict[str, Any]]) -> None:
    one, other = pair()
    for message in sent:
        one.send(message)
    assert [other.receive() for _ in sent] == sent
    one.close()
    other.close()


def send_in_thread(end: Channel, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> threading.Thread:
    thread = threading.Thread(target=end.send, args=(message, descriptors))
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1 << 16, 3_000_000])
def test_a_message_larger_than_the_socket_holds_arrives(size: int) -> None:
    one, other = pair()
    message = {"text": "é" * size}
    thread = send_in_thread(one, message)
    assert other.receive() == message
    thread.join()
    one.close()
    other.close()


def test_descriptors_travel_with_their_message_in_order() -> None:
    one, other = pair()
    first, second = os.pipe(), os.pipe()
    one.send({"fork": 1}, (first[1], second[1]))
    assert other.receive() == {"fork": 1}
    for text in (b"first", b"second"):
        descriptor = other.descriptors.popleft()
        os.write(descriptor, text)
        os.close(descriptor)
    for (readable, writable), text in ((first, b"first"), (second, b"second")):
        os.close(writable)
        assert os.read(readable, 100) == text
        assert os.read(readable, 100) == b"", "nobody else may hold the end that travelled"
        os.close(readable)
    one.close()
    other.close()


def test_descriptors_travel_with_a_message_that_does_not_fit_at_once() -> None:
    one, other = pair()
    readable, writable = os.pipe()
    message = {"text": "x" * 3_000_000}
    thread = send_in_thread(one, message, (writable,))
    assert other.receive() == message
    thread.join()
    os.close(writable)
    os.close(other.descriptors.popleft())
    assert os.read(readable, 1) == b""
    os.close(readable)
    one.close()
    other.close()


def test_available_takes_what_one_read_brings_and_keeps_the_rest_of_a_line() -> None:
    one, other = pair()
    one._socket.sendall(b'{"a": 1}\n{"b": 2}\n{"c"')
    assert other.available() == [{"a": 1}, {"b": 2}]
    one._socket.sendall(b": 3}\n")
    assert other.available() == [{"c": 3}]
    one.close()
    other.close()


def test_the_end_of_the_other_side_is_said_when_reading_and_when_writing() -> None:
    one, other = pair()
    one.send({"last": True})
    one.close()
    assert other.receive() == {"last": True}
    with pytest.raises(Closed):
        other.receive()
    with pytest.raises(Closed):
        other.available()
    with pytest.raises(Closed):
        for _ in range(100):
            other.send({"to": "nobody", "text": "x" * 10_000})
    other.close()
