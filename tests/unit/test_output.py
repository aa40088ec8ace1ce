"""What a task prints: bounded, what is dropped is counted, text is never torn."""

import os

from hypothesis import given
from hypothesis import strategies as st

from machinequeue.runner.output import ATOMIC, TAIL_BYTES, Output, pass_on, read_available


def all_of(output: Output) -> str:
    return output.take(last=True)[0]


def test_what_fits_is_kept_as_it_came() -> None:
    output = Output(100)
    output.add(b"one\n")
    assert output.waiting
    assert output.take() == ("one\n", 0)
    assert not output.waiting
    assert output.take() == ("", 0)
    output.add(b"two\n")
    assert output.take(last=True) == ("two\n", 0)


def test_a_character_torn_between_two_reads_is_put_together() -> None:
    output = Output(100)
    euro = "€".encode()
    output.add(b"10 " + euro[:1])
    assert output.take() == ("10 ", 0)
    output.add(euro[1:2])
    assert output.take() == ("", 0)
    output.add(euro[2:] + b"!")
    assert output.take() == ("€!", 0)


def test_a_character_that_never_ends_is_replaced_at_the_end() -> None:
    output = Output(100)
    output.add(b"x" + "€".encode()[:2])
    assert all_of(output) == "x\N{REPLACEMENT CHARACTER}"


def test_bytes_that_are_no_text_and_nul_are_replaced() -> None:
    output = Output(100)
    output.add(b"a\xffb\x00c")
    assert all_of(output) == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"


def test_over_the_limit_the_beginning_and_the_newest_are_kept_and_the_rest_is_counted() -> None:
    output = Output(10)
    written = b"0123456789" + b"a" * 100_000 + b"THE END"
    for start in range(0, len(written), 1000):
        output.add(written[start : start + 1000])
    text, dropped = output.take(last=True)
    assert dropped == len(written) - 10 - TAIL_BYTES
    assert text.startswith(f"0123456789\n… {dropped} bytes dropped …\naaa")
    assert text.endswith("THE END")


@given(st.lists(st.binary(max_size=5000), max_size=60), st.integers(0, 3000))
def test_whatever_is_printed_memory_is_bounded_and_every_byte_is_stored_or_counted(
    pieces: list[bytes], limit: int
) -> None:
    output = Output(limit)
    for piece in pieces:
        output.add(piece)
        assert len(output._pending) + len(output._tail) <= limit + TAIL_BYTES
    total = sum(map(len, pieces))
    text, dropped = output.take(last=True)
    assert dropped == max(0, total - limit - TAIL_BYTES)
    assert len(text.encode()) <= 3 * (limit + TAIL_BYTES) + 100
    assert "\x00" not in text


@given(st.text(max_size=500).filter(lambda text: "\x00" not in text), st.lists(st.integers(1, 7), min_size=1))
def test_text_survives_being_read_in_any_pieces(text: str, sizes: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    output, seen, position, turn = Output(100_000), "", 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        output.add(data[position : position + size])
        seen += output.take()[0]
        position, turn = position + size, turn + 1
    assert seen + all_of(output) == data.decode()


def test_reading_an_empty_pipe_neither_blocks_nor_raises() -> None:
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    assert read_available(readable) == b""
    os.write(writable, b"news")
    assert read_available(readable) == b"news"
    os.close(writable)
    assert read_available(readable) == b""
    os.close(readable)


def test_a_log_that_nobody_reads_blocks_no_task() -> None:
    readable, writable = os.pipe()
    pass_on(b"x" * 10_000_000, writable)  # far more than a pipe holds: would block for ever
    os.set_blocking(readable, False)
    assert len(os.read(readable, 1 << 20)) >= ATOMIC
    os.close(readable)
    pass_on(b"nobody is there", writable)  # EPIPE is no reason to fail either
    os.close(writable)
