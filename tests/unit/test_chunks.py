"""Chunks that bypass h11: the same bytes that h11 writes, and nothing but chunks."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.server.http.chunks import ChunkConnection

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


def asked(connection: h11.Connection, request: bytes = REQUEST) -> h11.Connection:
    connection.receive_data(request)
    while connection.next_event() is not h11.NEED_DATA and connection.their_state is not h11.DONE:
        pass
    return connection


def answer(connection: h11.Connection, headers: list[tuple[str, str]], parts: list[bytes]) -> bytes:
    response = h11.Response(status_code=200, headers=headers, reason=b"OK")
    events = [response, *(h11.Data(data=part) for part in parts), h11.EndOfMessage()]
    return b"".join(connection.send(event) or b"" for event in events)


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_a_chunked_answer_has_h11s_bytes(parts: list[bytes]) -> None:
    ours = answer(asked(ChunkConnection(16384)), [("content-type", "text/event-stream")], parts)
    theirs = answer(asked(h11.Connection(h11.SERVER)), [("content-type", "text/event-stream")], parts)
    assert ours == theirs


def test_a_second_answer_on_the_same_connection() -> None:
    ours, theirs = asked(ChunkConnection(16384)), asked(h11.Connection(h11.SERVER))
    for headers, parts in (([], [b"a", b"b"]), ([("content-length", "3")], [b"ab", b"c"]), ([], [b"d"])):
        assert answer(ours, headers, parts) == answer(theirs, headers, parts)
        for connection in (ours, theirs):
            connection.start_next_cycle()
            asked(connection)


def test_an_old_client_gets_no_chunks() -> None:
    old = asked(ChunkConnection(16384), b"GET / HTTP/1.0\r\n\r\n")
    assert answer(old, [], [b"a", b"b"]).endswith(b"\r\n\r\nab")


def test_nothing_follows_the_last_chunk() -> None:
    connection = asked(ChunkConnection(16384))
    answer(connection, [], [b"a"])
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"late"))


def test_its_limit_is_the_one_it_is_given() -> None:
    connection = ChunkConnection(100)
    connection.receive_data(b"GET / HTTP/1.1\r\nx: " + b"y" * 200)
    with pytest.raises(h11.RemoteProtocolError):
        connection.next_event()
