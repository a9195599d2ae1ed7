"""Damage done to files, the same on every machine: each round's seed is in its message. INPBENCH_FUZZ=N does N times the rounds."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

from inpbench.harness.errors import BenchError

ROUNDS = int(os.environ.get("INPBENCH_FUZZ", "1"))

# What nobody writes on purpose, put anywhere into a text.
WORDS = [
    *(b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"[]", b"{}", b"-1", b"1e999", b"9" * 400, b"1" * 5000, b'"\\ud800"'),
    *(
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\r",
        b"\n\n",
        b"[" * 5000,
        b'{"a":' * 3000,
        b'"a":1,"a":2',
        b"../../etc/passwd",
    ),
    *(b"/etc/passwd", b"C:\\x", b"..\\..\\x", b",,,,", b'"', b"'", b"\xe2\x80\xae", b"%s%n", b"\x1b[2J", b"A" * 70000),
]
# What stands in the place of any value.
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 10**308, 1e308, -1e308, 0.5, "", "\x00", "\ud800", "../../etc/passwd", "/etc/passwd"),
    *([], [[]], {}, {"a": {}}, [None], {"": None}, "x" * 10_000, [1] * 1000, [{"a": 1}] * 3),
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four wounds: a changed byte, a changed bit, a lost stretch, a doubled one, a foreign word, a lost end."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[place] = rng.randrange(256)
        elif kind == 1 and out:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del out[place : place + rng.randint(1, 200)]
        elif kind == 3:
            out[place:place] = out[place : place + rng.randint(1, 200)]
        elif kind == 4:
            out[place:place] = rng.choice(WORDS)
        elif rng.random() < 0.3:
            del out[place:]
    return bytes(out)


def retyped(document: Any, rng: random.Random) -> Any:
    """A deep copy in which one value, at any depth, is of another kind, gone, or under another key."""
    made = copy.deepcopy(document)
    node = made
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return rng.choice(VALUES)
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        how = rng.randrange(4)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(["", "schema", "x", str(key) + " "])] = node.pop(key)
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        return made


@contextlib.contextmanager
def within(seconds: int, what: str) -> Iterator[None]:
    """Fail where the block hangs."""

    def late(*_: object) -> None:
        raise AssertionError(f"{what} took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survive(attack: Callable[[random.Random], Any], rounds: int, name: str) -> tuple[int, int]:
    """Call `attack` with many seeds. A `BenchError` of two lines is an answer, any other exception a fault; (answers, readings)."""
    refused = read = 0
    for seed in range(rounds * ROUNDS):
        try:
            with within(20, f"{name}, seed {seed}"):
                attack(random.Random(seed))
            read += 1
        except BenchError as error:
            assert error.message and error.hint, f"{name}, seed {seed}: {error!r} does not say what to type next"
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
    return refused, read
