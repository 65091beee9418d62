"""What changes in one turn of the loop is recorded in one commit, and a commit that fails is made again."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest

from arendezvous.coordinator.commits import Commits
from arendezvous.coordinator.journal import Batch, Done
from arendezvous.errors import RendezvousStateError
from arendezvous.testing.journal_checks import MemoryJournal

FULL = RendezvousStateError("disk full")


class Notes:
    """A recorder of words, which says what it is told."""

    def __init__(self, commits: Commits) -> None:
        self.told: list[str] = []
        self.react: Callable[[], None] = lambda: None
        self._words: list[bytes] = []
        self._sent: list[bytes] = []
        self._commits = commits
        commits.add(self)

    def note(self, word: bytes) -> None:
        self._words.append(word)
        self._commits.note()

    def collect(self, batch: Batch) -> None:
        self._sent, self._words = self._words, []
        for word in self._sent:
            batch.put(word, b"")

    def recorded(self) -> None:
        self.told.append("recorded " + b" ".join(self._sent).decode())
        self.react()

    def failed(self, why: str) -> None:
        self.told.append(f"failed: {why}")
        self._words = self._sent + self._words


class SlowJournal(MemoryJournal):
    """Holds commits until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Batch, Done]] = []

    def commit(self, batch: Batch, done: Done) -> None:
        self.held.append((batch, done))

    def go_on(self) -> None:
        super().commit(*self.held.pop())


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.virtual
async def test_all_that_is_noted_in_one_turn_is_one_commit() -> None:
    journal = MemoryJournal()
    commits = Commits(journal, asyncio.get_running_loop())
    notes = Notes(commits)
    assert commits.is_clean
    for word in (b"a", b"b", b"c"):
        notes.note(word)
    assert (commits.is_clean, journal.commits) == (False, 0)
    await turn()
    assert (commits.is_clean, journal.commits, notes.told) == (True, 1, ["recorded a b c"])


@pytest.mark.virtual
async def test_what_comes_while_a_commit_is_under_way_is_in_the_next_one() -> None:
    journal = SlowJournal()
    commits = Commits(journal, asyncio.get_running_loop())
    notes = Notes(commits)
    called: list[str] = []
    notes.note(b"a")
    commits.when_recorded(lambda: called.append("a"))
    await turn()
    commits.when_recorded(lambda: called.append("a, too"))
    notes.note(b"b")
    notes.note(b"c")
    commits.when_recorded(lambda: called.append("b and c"))
    await turn()
    assert len(journal.held) == 1
    journal.go_on()
    assert called == ["a", "a, too"]
    await turn()
    journal.go_on()
    assert called[2:] == ["b and c"]
    commits.when_recorded(lambda: called.append("nothing"))
    assert called[3:] == ["nothing"]
    assert notes.told == ["recorded a", "recorded b c"]


@pytest.mark.virtual
async def test_a_commit_that_fails_is_made_again_until_it_succeeds_and_says_why_meanwhile() -> None:
    journal = MemoryJournal()
    journal.failure = FULL
    commits = Commits(journal, asyncio.get_running_loop())
    notes = Notes(commits)
    called: list[str] = []
    notes.note(b"a")
    commits.when_recorded(lambda: called.append("a"))
    await asyncio.sleep(30)
    tried = len(notes.told)
    assert 10 < tried < 40
    assert (commits.obstacle, called) == ("disk full", [])
    notes.note(b"b")
    journal.failure = None
    await asyncio.sleep(2)
    assert (commits.obstacle, called, journal.commits) == ("", ["a"], 1)
    assert notes.told[tried:] == ["recorded a b"]
    assert journal.rows == {b"a": b"", b"b": b""}


@pytest.mark.virtual
async def test_what_a_recorder_notes_as_it_is_told_is_recorded_next() -> None:
    journal = MemoryJournal()
    commits = Commits(journal, asyncio.get_running_loop())
    notes = Notes(commits)
    notes.react = lambda: notes.note(b"b") if len(notes.told) == 1 else None
    notes.note(b"a")
    await turn()
    await turn()
    assert notes.told == ["recorded a", "recorded b"]


@pytest.mark.virtual
async def test_nobody_is_told_any_more_once_it_is_closed() -> None:
    journal = SlowJournal()
    commits = Commits(journal, asyncio.get_running_loop())
    notes = Notes(commits)
    notes.note(b"a")
    await turn()
    notes.note(b"b")
    commits.close()
    journal.go_on()
    await turn()
    assert notes.told == []


@pytest.mark.virtual
async def test_a_callback_that_fails_keeps_nobody_else_waiting(caplog: pytest.LogCaptureFixture) -> None:
    commits = Commits(MemoryJournal(), asyncio.get_running_loop())
    notes = Notes(commits)
    called: list[str] = []

    def fail() -> None:
        raise ValueError("a bug")

    notes.note(b"a")
    commits.when_recorded(fail)
    commits.when_recorded(lambda: called.append("a"))
    await turn()
    assert called == ["a"]
    assert "telling of what is recorded failed" in caplog.text
    notes.note(b"b")
    await turn()
    assert notes.told == ["recorded a", "recorded b"]


@pytest.mark.virtual
async def test_who_waits_for_no_longer_than_it_may_is_told_whether_all_is_recorded() -> None:
    journal = SlowJournal()
    commits = Commits(journal, asyncio.get_running_loop())
    notes = Notes(commits)
    answers: list[bool] = []
    commits.settle(answers.append, 1.0)
    notes.note(b"a")
    commits.settle(answers.append, 1.0)
    await asyncio.sleep(2)
    commits.settle(answers.append, 1.0)
    journal.go_on()
    await asyncio.sleep(2)
    assert answers == [True, False, True]


@pytest.mark.virtual
async def test_nothing_is_kept_of_who_has_been_told_that_it_is_not_recorded() -> None:
    commits = Commits(SlowJournal(), asyncio.get_running_loop())
    Notes(commits).note(b"a")
    answers: list[bool] = []
    callback = partial(answers.append)
    commits.settle(callback, 1.0)
    kept = weakref.ref(callback)
    del callback
    await asyncio.sleep(2)
    gc.collect()
    assert (answers, kept()) == ([False], None)
