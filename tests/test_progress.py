"""Progress: records add up, the time left follows the work done, and nobody listening means nothing printed."""

from __future__ import annotations

import sys

import pytest

from sedaq import progress
from sedaq.progress import Record, listening, shown, track


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_record_before_the_first_item_and_after_each(clock: Clock) -> None:
    records: list[Record] = []
    with listening(records.append):
        for _ in track(["a", "b", "c", "d"], "work"):
            clock.now += 2
    assert [r.done for r in records] == [0, 1, 2, 3, 4]
    assert {r.total for r in records} == {4} and {r.description for r in records} == {"work"}
    assert [r.elapsed for r in records] == [0, 2, 4, 6, 8]
    assert [r.remaining for r in records] == [None, 6, 4, 2, 0]


def test_costs_weigh_items(clock: Clock) -> None:
    records: list[Record] = []
    with listening(records.append):
        for item in track([1, 3, 4], "work", cost=lambda item: item):
            clock.now += 10 * item
    assert [r.done for r in records] == [0, 1, 4, 8]
    assert records[0].total == 8
    assert [r.remaining for r in records] == [None, 70, 40, 0]


def test_work_of_an_earlier_run_counts_as_done_but_not_in_the_speed(clock: Clock) -> None:
    records: list[Record] = []
    with listening(records.append):
        for _ in track(["a", "b"], "work", done=8):
            clock.now += 3
    assert [(r.done, r.total) for r in records] == [(8, 10), (9, 10), (10, 10)]
    assert [r.remaining for r in records] == [None, 3, 0]


def test_a_generator_with_a_total_is_not_read_ahead() -> None:
    drawn = []

    def items():
        for i in range(3):
            drawn.append(i)
            yield i

    stream = track(items(), "work", 3)
    assert next(stream) == 0 and drawn == [0]


def test_nothing_to_do_reports_once_and_divides_by_nothing() -> None:
    records: list[Record] = []
    with listening(records.append):
        assert list(track([], "work", done=5)) == []
    assert [(r.done, r.total, r.remaining) for r in records] == [(5, 5, None)]


def test_without_a_listener_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "work")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_listener_leaves_with_its_block_even_when_the_work_fails() -> None:
    records: list[Record] = []
    with pytest.raises(RuntimeError, match="stop"), listening(records.append):
        for _ in track(range(3), "work"):
            raise RuntimeError("stop")
    assert len(records) == 1
    list(track(range(3), "work"))
    assert len(records) == 1


def test_without_a_terminal_a_line_comes_at_most_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        for _ in track(range(100), "probing"):
            clock.now += 7
        for _ in track(range(2), "encoding", cost=lambda _: 1_000_000):
            clock.now += 3725
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[:2] == ["probing: 5 of 100, 0:35, 11:05 left", "probing: 10 of 100, 1:10, 10:30 left"]
    assert lines[19:] == [
        "probing: 100 of 100, 11:40, 0:00 left",
        "encoding: 1,000,000 of 2,000,000, 1:02:05, 1:02:05 left",
        "encoding: 2,000,000 of 2,000,000, 2:04:10, 0:00 left",
    ]


def test_quick_work_says_nothing_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        for _ in track(range(4), "work"):
            clock.now += 7
    assert capsys.readouterr() == ("", "")


def test_bars_go_to_stderr_and_follow_a_new_total(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with shown():
        list(track(range(4), "encoding"))
        list(track(range(2), "encoding", done=5))
        list(track(range(3), "probing"))
    out, err = capsys.readouterr()
    assert out == ""
    lines = {line.split()[0]: line for line in err.splitlines() if line.strip()}
    assert "7/7" in lines["encoding"] and "3/3" in lines["probing"]


def test_an_error_before_any_work_prints_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="wrong"), shown():
        raise RuntimeError("wrong")
    assert capsys.readouterr() == ("", "")
