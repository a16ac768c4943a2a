"""Patterns for module names in LoRA files, matched in bounded time.

PEFT takes keys of ``alpha_pattern`` as regular expressions. Python's engine can need exponential
time for a crafted one, so the part of the syntax that names modules is matched here by following
all possible states at once (Thompson, 1968): time proportional to pattern times name.
"""

import re
import string
from collections.abc import Callable, Mapping

from regionroute.errors import UserError

LONGEST = 500  # characters of a pattern
DEEPEST = 20  # brackets in brackets
MOST_EXPRESSIONS = 200  # patterns that are more than a name
_LITERAL = re.compile(r"[\w.-]+")
_CLASSES = {
    "d": string.digits,
    "w": string.ascii_letters + string.digits + "_",
    "s": string.whitespace,
}

Test = Callable[[str], bool]
Edge = tuple[Test | str | None, int]  # what a step needs: a character, "^", "$" or nothing


def first_match(patterns: Mapping[str, object], name: str) -> str | None:
    """The first pattern that matches the end of a module's name, as PEFT does it.

    Args:
        patterns: by pattern, in their order.
        name: such as "transformer_blocks.0.attn.to_q".

    Raises:
        UserError: a pattern that is no valid one, too long, or of an unknown syntax.
    """
    expressions = 0
    for pattern in patterns:
        if len(pattern) > LONGEST:
            raise UserError(f"the pattern {pattern[:40]!r}... is longer than {LONGEST} characters")
        if _LITERAL.fullmatch(pattern):
            if _ends_with(name, pattern):
                return pattern
            continue
        expressions += 1
        if expressions > MOST_EXPRESSIONS:
            raise UserError(f"there are more than {MOST_EXPRESSIONS} patterns with wildcards")
        if _Machine(pattern).matches_end(name):
            return pattern
    return None


def _ends_with(name: str, pattern: str) -> bool:
    """Whether the whole name, or what follows a dot in it, is the pattern; "." is any character."""
    start = len(name) - len(pattern)
    if start < 0 or (start > 0 and name[start - 1] != "."):
        return False
    return all(b in (a, ".") for a, b in zip(name[start:], pattern, strict=True))


class _Machine:
    r"""The states of a pattern: literals, ``. \d \w [...] (...) | * + ? ^ $``."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0
        self.edges: list[list[Edge]] = []
        self.first, self.last = self._alternatives()
        if self.at < len(pattern):
            raise self._error(f"unexpected {pattern[self.at]!r}")

    def matches_end(self, name: str) -> bool:
        """Whether the name from its start or from after any dot is matched up to its end."""
        states: set[int] = set()
        for place in range(len(name) + 1):
            if place == 0 or name[place - 1] == ".":
                states.add(self.first)
            self._close(states, place == 0, place == len(name))
            if place < len(name):
                letter = name[place]
                states = {
                    target
                    for state in states
                    for need, target in self.edges[state]
                    if callable(need) and need(letter)
                }
        return self.last in states

    def _close(self, states: set[int], at_start: bool, at_end: bool) -> None:
        """Adds all states that are reached without a character."""
        free = {None: True, "^": at_start, "$": at_end}
        waiting = list(states)
        while waiting:
            for need, target in self.edges[waiting.pop()]:
                if not callable(need) and free[need] and target not in states:
                    states.add(target)
                    waiting.append(target)

    def _state(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def _peek(self) -> str:
        return self.pattern[self.at] if self.at < len(self.pattern) else ""

    def _next(self) -> str:
        letter = self._peek()
        if not letter:
            raise self._error("it ends too early")
        self.at += 1
        return letter

    def _alternatives(self) -> tuple[int, int]:
        first, last = self._state(), self._state()
        while True:
            start = end = self._state()
            self.edges[first].append((None, start))
            while self._peek() not in ("", "|", ")"):
                begin, after = self._repeated()
                self.edges[end].append((None, begin))
                end = after
            self.edges[end].append((None, last))
            if self._peek() != "|":
                return first, last
            self.at += 1

    def _repeated(self) -> tuple[int, int]:
        first, last = self._atom()
        while self._peek() in ("*", "+", "?") and self._peek():
            sign = self._next()
            begin, end = self._state(), self._state()
            self.edges[begin].append((None, first))
            self.edges[last].append((None, end))
            if sign in "*+":
                self.edges[last].append((None, first))
            if sign in "*?":
                self.edges[begin].append((None, end))
            first, last = begin, end
        return first, last

    def _atom(self) -> tuple[int, int]:
        letter = self._next()
        if letter == "(":
            return self._group()
        if letter in "*+?{":
            raise self._error(f"{letter!r} is not supported here")
        first, last = self._state(), self._state()
        self.edges[first].append((self._need(letter), last))
        return first, last

    def _group(self) -> tuple[int, int]:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._error(f"brackets are nested more than {DEEPEST} deep")
        if self.pattern.startswith("?:", self.at):
            self.at += 2
        found = self._alternatives()
        if self._next() != ")":
            raise self._error("a bracket is not closed")
        self.depth -= 1
        return found

    def _need(self, letter: str) -> Test | str:
        if letter in "^$":
            return letter
        if letter == ".":
            return lambda found: found != "\n"
        if letter == "[":
            return self._set()
        if letter == "\\":
            return self._escaped().__contains__
        return letter.__eq__

    def _escaped(self) -> str:
        letter = self._next()
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter.isalnum():
            raise self._error(f"\\{letter} is not supported")
        return letter

    def _set(self) -> Test:
        inverted = self._peek() == "^"
        self.at += inverted
        letters: set[str] = set()
        while (letter := self._next()) != "]":
            if letter == "\\":
                letters |= set(self._escaped())
            elif self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                letters |= {chr(code) for code in range(ord(letter), ord(self._next()) + 1)}
            else:
                letters.add(letter)
        return lambda found: (found in letters) != inverted

    def _error(self, why: str) -> UserError:
        return UserError(f"the pattern {self.pattern[:60]!r} of modules cannot be used: {why}")
