"""Facts of a part, one line each: measured, right or wrong, or skipped and why."""

from __future__ import annotations

import itertools
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.autograd import DeviceType

from tools.bench.measure import in_turns
from tools.bench.report import Table

Verdict = Literal["fact", "ok", "BAD", "skip"]
COLUMNS = ("verdict", "value")


@dataclass
class Facts:
    """What a part finds out on ``device``; every line is printed by ``show`` when it is known."""

    device: torch.device
    show: Callable[[str], object] = print
    found: dict[str, tuple[Verdict, str]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to ask."""
        return self.device.type == "cuda"

    def tell(self, name: str, value: object) -> None:
        """A number that is neither right nor wrong."""
        self._add("fact", name, value)

    def check(self, name: str, right: bool, value: object = "") -> None:
        """Something that must hold."""
        self._add("ok" if right else "BAD", name, value)

    def skip(self, name: str, reason: str) -> None:
        """What cannot be asked here."""
        self._add("skip", name, reason)

    def times(
        self, paths: Mapping[str, Callable[[], object]], repeats: int = 5
    ) -> dict[str, float]:
        """Median milliseconds of each path, in turns."""
        taken = in_turns(paths, repeats, self.device)
        return {name: statistics.median(seconds) * 1e3 for name, seconds in taken.items()}

    def _add(self, verdict: Verdict, name: str, value: object) -> None:
        assert name not in self.found, f"{name} was told before"
        self.found[name] = verdict, str(value)
        self.show(f"{verdict:4} {name}" + (f": {value}" if str(value) else ""))


Part = Callable[[Facts], None]


def run_parts(
    parts: Mapping[str, Part], device: torch.device, show: Callable[[str], object] = print
) -> tuple[Table, ...]:
    """Run every part, going on after one that fails, and show what each finds."""
    tables = []
    for name, part in parts.items():
        show(f"=== {name} on {device.type}")
        begun, facts = time.perf_counter(), Facts(device, show)
        try:
            part(facts)
        except Exception as error:
            facts.check(f"{name} goes through", False, _where(error))
        title = f"{name} on {device.type}, {time.perf_counter() - begun:.0f} s"
        tables.append(Table(title, COLUMNS, dict(facts.found)))
    return tuple(tables)


def verdict(tables: tuple[Table, ...]) -> tuple[bool, str]:
    """Whether nothing is wrong, and the last line."""
    count = Counter(row[0] for table in tables for row in table.rows.values())
    words = f"{count['ok']} right, {count['BAD']} wrong, {count['skip']} skipped"
    return count["BAD"] == 0, f"{'fail' if count['BAD'] else 'pass'}: {words}"


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference, as a part of that of ``theirs``."""
    right = theirs.detach().double()
    return float((ours.detach().double() - right).norm() / right.norm())


def kernels(run: Callable[[], Any]) -> list[tuple[str, float]]:
    """Name and milliseconds of every kernel, copy and fill of a run on CUDA."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        run()
        torch.cuda.synchronize()
    return [
        (event.name, event.time_range.elapsed_us() / 1e3)
        for event in record.events()
        if event.device_type == DeviceType.CUDA
    ]


def longest(spans: list[tuple[str, float]], number: int) -> str:
    """The kernels that take most, with their milliseconds."""
    total: Counter[str] = Counter()
    for name, milliseconds in spans:
        total[name[:60]] += milliseconds  # type: ignore[assignment]
    return ", ".join(f"{name} {ms:.2f} ms" for name, ms in total.most_common(number))


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/codetr/" in f.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    words = " ".join(itertools.islice(str(error).split(), 60))
    return f"{type(error).__name__}: {words}{place}"
