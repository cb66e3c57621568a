"""Every error that the page on troubleshooting quotes, by a command that it names."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from commands import ROOT, arguments, environment
from documented_errors import ROWS, Row
from warm import run_warm

PAGE = ROOT / "docs/troubleshooting.md"
SIMULATED = """{simulated}
import runpy, sys
sys.argv[0] = {script!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def quoted(page: str) -> list[str]:
    """What a page says that a command says: lines ``error: ...``, and code of four words or more
    that is no command.
    """
    blocks = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    errors = [line for block in blocks for line in block.splitlines() if line.startswith("error:")]
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    return errors + [s for s in spans if len(s.split()) > 3 and not s.startswith("python ")]


def pattern(quote: str, row: Row) -> re.Pattern[str]:
    """The quote with any numbers, and what differs in the row."""
    words = [*row.differs, r"\d+(?:\.\d+)?"]
    split = re.split("(" + "|".join([*map(re.escape, row.differs), words[-1]]) + ")", quote)
    return re.compile(
        "".join(
            re.escape(part) if i % 2 == 0 else row.differs.get(part, r"\d+(?:\.\d+)?")
            for i, part in enumerate(split)
        )
    )


QUOTES = quoted(PAGE.read_text("utf-8"))


def quote_of(words: str) -> str:
    (found,) = (quote for quote in QUOTES if words in quote)
    return found


def test_every_quoted_error_has_a_row_and_every_row_an_error() -> None:
    rows = [[words for words in ROWS if words in quote] for quote in QUOTES]
    assert [q for q, found in zip(QUOTES, rows, strict=True) if len(found) != 1] == []
    assert [words for words in ROWS if [words] not in rows] == []
    assert len(QUOTES) > 40


def test_a_quote_without_a_row_is_found() -> None:
    page = "Do it.\n\n```text\nerror: a: b\nmore\n```\n\nIt says `no c: did you\nmean d?`, `x=1`.\n"
    assert quoted(page) == ["error: a: b", "no c: did you mean d?"]


def test_other_words_than_the_page_has_are_found() -> None:
    row = Row(make=lambda _: None, commands=(), differs={"a.json": "b.json"})
    wanted = pattern("error: a.json has 3 boxes (none)", row)
    assert wanted.fullmatch("error: b.json has 12 boxes (none)")
    assert not wanted.fullmatch("error: b.json has 12 boxes (some)")
    assert not wanted.fullmatch("error: c.json has 12 boxes (none)")


CASES = [
    pytest.param(words, command, id=f"{words}: {Path(command[0]).stem}")
    for words, row in ROWS.items()
    for command in row.commands
]


@pytest.mark.parametrize(("words", "given"), CASES)
def test_error_is_said_by_its_command(words: str, given: tuple[str, ...], tmp_path: Path) -> None:
    row, quote = ROWS[words], quote_of(words)
    line = arguments(*given)
    if row.simulated:
        script = tmp_path / "simulated.py"
        script.write_text(SIMULATED.format(simulated=row.simulated, script=line[1]))
        line[1] = str(script)
    with row.make(tmp_path) or nullcontext():
        done = run_warm(line, tmp_path, {**environment(), "HOME": str(tmp_path)})
    assert done.returncode == row.status, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    said = [*done.stdout.splitlines(), *done.stderr.splitlines()]  # a sweep logs its jobs' errors
    (error,) = {line[line.index("error: ") :] for line in said if "error: " in line}
    wanted = pattern(quote, row)
    if quote.startswith("error: "):
        assert wanted.fullmatch(error), f"the page: {quote}\nthe command: {error}"
    else:  # within a sentence, the beginning or a part of it
        assert wanted.search(error), f"the page: {quote}\nthe command: {error}"
