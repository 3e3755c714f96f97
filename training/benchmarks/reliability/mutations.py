"""Changes of files: of bytes, of words of a text, of values of JSON; drawn from a seed."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    *("0", "-1", "1", "-0.0", "1e308", "-1e308", "1e400", "NaN", "Infinity", "nan", "inf"),
    *("2147483647", "4294967296", "9223372036854775808", "-9223372036854775809", "1" * 400),
)
WORDS = (
    *NUMBERS,
    *(
        "null",
        "true",
        '""',
        "[]",
        "{}",
        "[" * 3000,
        '{"a":' * 3000,
        '"\\ud800"',
        "\0",
        "\n",
        "\x1b",
    ),
    *("../../etc/passwd", "/etc/passwd", "/dev/zero", "x" * 5000, "%s%n", "é", "\u202e"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 2**31, 2**63, 10**400),
    *(float("nan"), float("inf"), "", "x" * 5000, "../../x", "\0", "\ud800", "\x1b[8m"),
    *([], {}, [[]], [0] * 5000, {"a": {"a": {}}}),
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with one to four changes."""
    found = content
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = chance.choice(CHANGES)(found, chance)
    return found


def _flip(content: bytes, chance: random.Random) -> bytes:
    if not content:
        return b"\0"
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def _byte(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    return content[:at] + bytes([chance.choice((0, 1, 127, 128, 255))]) + content[at + 1 :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _drop(content: bytes, chance: random.Random) -> bytes:
    first, last = _slice(content, chance)
    return content[:first] + content[last:]


def _repeat(content: bytes, chance: random.Random) -> bytes:
    first, last = _slice(content, chance)
    return content[:last] + content[first:last] * chance.choice((1, 2, 50)) + content[last:]


def _swap(content: bytes, chance: random.Random) -> bytes:
    first, last = _slice(content, chance)
    other = chance.randrange(len(content) + 1)
    return content[:other] + content[first:last] + content[other + last - first :]


def _insert(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    word = chance.choice(WORDS).encode(errors="surrogatepass")
    return content[:at] + word + content[at:]


def _number(content: bytes, chance: random.Random) -> bytes:
    """Another number in the place of one that is written in digits."""
    found = list(re.finditer(rb"-?\d[\d.e+-]*", content))
    if not found:
        return _flip(content, chance)
    one = chance.choice(found)
    other = chance.choice((*NUMBERS, str(chance.randrange(-20, 20)), str(chance.gauss(0, 10))))
    return content[: one.start()] + other.encode() + content[one.end() :]


def _line(content: bytes, chance: random.Random) -> bytes:
    """A line that is missing, there twice, or elsewhere."""
    lines = content.split(b"\n")
    one = lines.pop(chance.randrange(len(lines)))
    for _ in range(chance.choice((0, 1, 2))):
        lines.insert(chance.randrange(len(lines) + 1), one)
    return b"\n".join(lines)


def _value(content: bytes, chance: random.Random) -> bytes:
    """Another value, or none, somewhere in JSON."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return _number(content, chance)
    places = list(_places(whole))
    if not places:
        return _number(content, chance)
    holder, key = chance.choice(places)
    if chance.random() < 0.2:
        del holder[key]
    elif isinstance(holder, dict) and chance.random() < 0.2:
        holder[chance.choice(("more", "", "\0", key + "x"))] = holder.pop(key)
    else:
        other = chance.choice(places)
        value = other[0].get(other[1]) if isinstance(other[0], dict) else None
        holder[key] = chance.choice((*VALUES, value))
    return json.dumps(whole).encode(errors="surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inside:
        found.append((value, key))
        if isinstance(part, dict | list):
            found += _places(part)
    return found


def _slice(content: bytes, chance: random.Random) -> tuple[int, int]:
    first = chance.randrange(len(content) + 1)
    return first, min(len(content), first + chance.choice((1, 4, 16, 256, 4096)))


CHANGES: tuple[Mutation, ...] = (
    *(_flip, _byte, _cut, _drop, _repeat, _swap, _insert),
    *(_number, _number, _line, _value, _value, _value),
)
