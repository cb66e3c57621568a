"""Converting boxes to pixels of image files whose size differs from that in the annotations.

A photo with an EXIF orientation may have been annotated as it is stored or as it is displayed, or
it was resized after it was annotated. An interpretation is chosen if it is the only one in which
boxes fit the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr.data.box_formats import slack_px
from codetr.data.images import ON_THEIR_SIDE, Geometry
from codetr.data.json_columns import as_number
from codetr.errors import UserError

AUTO, UPRIGHT, STORED, SCALED = "auto", "upright", "stored", "scaled"
READINGS = (AUTO, UPRIGHT, STORED, SCALED)

_PIXELS = {
    UPRIGHT: "pixels of the image as displayed",
    STORED: "pixels of the image as stored",
    SCALED: "pixels of the declared size",
}
_TURNED, _RESIZED = "turned", "resized"
_SAME_PX = 1  # annotation tools round


def require_reading(boxes: str) -> None:
    """Raise UserError for an unknown interpretation."""
    if boxes not in READINGS:
        raise UserError(f"data.boxes={boxes}: choose {', '.join(READINGS)}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the annotations claim about an image ``file``: its size (None if missing) and its boxes,
    ``corners`` (N, 4) xyxy in pixels of that size, or with ``relative`` as fractions of it; and the
    actual geometry of the file.
    """

    file: str
    declared_wh: tuple[int, int] | None
    corners: NDArray[np.float64]
    geometry: Geometry
    relative: bool = False

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height of the file after it is turned upright."""
        return self.geometry.size[::-1]

    @property
    def stored_wh(self) -> tuple[int, int]:
        """Width and height of the file before it is turned upright."""
        height, width = self.geometry.size
        on_its_side = self.geometry.orientation in ON_THEIR_SIDE
        return (height, width) if on_its_side else (width, height)

    @property
    def contradiction(self) -> str | None:
        """How the declared size differs from the file's; None if it does not."""
        if self.declared_wh is None or _same(self.declared_wh, self.upright_wh):
            return None
        return _TURNED if _same(self.declared_wh, self.upright_wh[::-1]) else _RESIZED

    def readings(self) -> tuple[str, ...]:
        """The possible interpretations of boxes if the sizes differ, whether the boxes fit
        or not.
        """
        if self.contradiction == _RESIZED:
            return UPRIGHT, SCALED
        turned = self.geometry.orientation in ON_THEIR_SIDE
        return (UPRIGHT, STORED) if turned else (UPRIGHT,)

    def fits(self, reading: str) -> bool:
        """Whether all boxes lie within the image with this interpretation."""
        sizes = {UPRIGHT: self.upright_wh, STORED: self.stored_wh, SCALED: self.declared_wh}
        size = np.array(sizes[reading] * 2, np.float64)  # type: ignore[operator]
        beyond = np.maximum(self.corners - size, -self.corners)
        return bool((beyond <= slack_px(size)).all())


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The affine transform from points of the annotations to the upright file: ``matrix`` (2, 2)
    times (x, y), plus ``offset`` (2,).
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    @property
    def is_identity(self) -> bool:
        """Whether points stay where they are."""
        return bool((self.matrix == np.eye(2)).all() and not self.offset.any())

    @property
    def area(self) -> float:
        """The factor by which areas grow."""
        return abs(float(np.linalg.det(self.matrix)))

    def corners(self, xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transformed boxes (N, 4); their corners keep their order."""
        with np.errstate(over="ignore", invalid="ignore"):  # huge boxes have no area in an image
            first, second = (xyxy[:, i : i + 2] @ self.matrix.T + self.offset for i in (0, 2))
        flipped = self.matrix.sum(axis=1) < 0  # for the new x and y
        low, high = np.where(flipped, second, first), np.where(flipped, first, second)
        return np.concatenate([low, high], axis=1)

    def segmentation(self, value: Any) -> Any | None:
        """Transformed polygons; None for anything else, such as run lengths, unless this is the
        identity.
        """
        if self.is_identity:
            return value
        polygons = value if isinstance(value, list) else []
        found = []
        for polygon in polygons:
            numbers = [as_number(v) for v in polygon] if isinstance(polygon, list) else [None]
            if None in numbers or len(numbers) % 2:
                return None
            points = np.array(numbers, np.float64).reshape(-1, 2) @ self.matrix.T + self.offset
            found.append(points.flatten().tolist())
        return found or None


def place(claims: Sequence[Claim], choice: str = AUTO) -> tuple[list[Placement], list[str]]:
    """The placement of the boxes of each image, and a remark for each kind of contradiction.

    ``choice`` is the interpretation for images where it is possible; ``AUTO`` chooses the only one
    in which boxes fit. Raises UserError if boxes fit in several, or in none.
    """
    decided = {kind: _decided(kind, claims, choice) for kind in (_TURNED, _RESIZED)}
    readings = [
        decided[kind][claim.file] if (kind := claim.contradiction) else _agreeing(claim, choice)
        for claim in claims
    ]
    return [_placement(c, r) for c, r in zip(claims, readings, strict=True)], list(
        _remarks(claims, readings)
    )


def _agreeing(claim: Claim, choice: str) -> str:
    """The interpretation of boxes whose image has the declared size, or for which none is
    declared.
    """
    other = claim.declared_wh is not None and not _same(claim.declared_wh, claim.stored_wh)
    return STORED if choice == STORED and claim.geometry.orientation != 1 and not other else UPRIGHT


def _decided(kind: str, claims: Iterable[Claim], choice: str) -> dict[str, str]:
    """The interpretation of each image with a kind of contradiction, by its file."""
    open_ones = {c.file: c for c in claims if c.contradiction == kind}
    found: dict[str, str] = {}
    votes: Counter[str] = Counter()
    for file, claim in open_ones.items():
        fitting = [reading for reading in claim.readings() if claim.fits(reading)]
        if choice in claim.readings():
            found[file] = choice
        elif not len(claim.corners):
            found[file] = UPRIGHT
        elif len(fitting) == 1:
            found[file] = fitting[0]
            votes.update(fitting)
    if len(votes) == 1:
        (reading,) = votes
        possible = [f for f, c in open_ones.items() if reading in c.readings() and f not in found]
        found |= dict.fromkeys(possible, reading)
    rest = [claim for file, claim in open_ones.items() if file not in found]
    if rest:
        raise _undecided(rest)
    return found


def _undecided(claims: Sequence[Claim]) -> UserError:
    first = claims[0]
    readings = first.readings()
    settings = " or ".join(f"data.boxes={reading} ({_PIXELS[reading]})" for reading in readings)
    fit = (
        "fit both" if first.fits(UPRIGHT) else "fit neither" if len(readings) > 1 else "do not fit"
    )
    return UserError(
        f"{len(claims)} images have another size than their annotations say, such as {first.file}: "
        f"{_text(first.upright_wh)} pixels upright, {_text(first.declared_wh)} declared; boxes "
        f"{fit}: set {settings}"
    )


def _remarks(claims: Sequence[Claim], readings: Sequence[str]) -> Iterator[str]:
    """A line for each kind of difference from the declared sizes."""
    kinds: dict[str, list[Claim]] = {}
    for claim, reading in zip(claims, readings, strict=True):
        if claim.contradiction or reading == STORED:
            kinds.setdefault(reading, []).append(claim)
    done = {
        UPRIGHT: "boxes were taken as pixels of the upright file",
        STORED: "boxes were taken as pixels of the stored image and turned upright with it",
        SCALED: "boxes were scaled to the file",
    }
    for reading, found in kinds.items():
        first = found[0]
        declared = f", {_text(first.declared_wh)} declared" if first.declared_wh else ""
        yield (
            f"{len(found)} images differ from their annotations, such as {first.file} "
            f"({_text(first.upright_wh)} pixels upright{declared}): {done[reading]} (data.boxes="
            f"{reading})"
        )


def _placement(claim: Claim, reading: str) -> Placement:
    width, height = claim.stored_wh if reading == STORED else claim.upright_wh
    matrix, offset = np.eye(2), np.zeros(2)
    if reading == STORED:
        # rows: new x and y; columns: coefficients of the stored x, y, width and height
        rows = np.array(_UPRIGHT_BY_EXIF.get(claim.geometry.orientation, _UPRIGHT_BY_EXIF[1]))
        matrix, offset = rows[:, :2].astype(float), rows[:, 2:] @ np.array([width, height], float)
    if claim.relative:
        matrix = matrix * np.array([width, height])
    elif reading == SCALED:
        assert claim.declared_wh is not None
        matrix = np.diag(np.array([width, height]) / np.array(claim.declared_wh))
    return Placement(matrix=matrix, offset=offset)


_UPRIGHT_BY_EXIF = {
    1: ((1, 0, 0, 0), (0, 1, 0, 0)),
    2: ((-1, 0, 1, 0), (0, 1, 0, 0)),
    3: ((-1, 0, 1, 0), (0, -1, 0, 1)),
    4: ((1, 0, 0, 0), (0, -1, 0, 1)),
    5: ((0, 1, 0, 0), (1, 0, 0, 0)),
    6: ((0, -1, 0, 1), (1, 0, 0, 0)),
    7: ((0, -1, 0, 1), (-1, 0, 1, 0)),
    8: ((0, 1, 0, 0), (-1, 0, 1, 0)),
}
"""Coefficients of the upright coordinates of a stored point, by EXIF orientation."""


def _same(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return all(abs(a - b) <= _SAME_PX for a, b in zip(one, other, strict=True))


def _text(size_wh: tuple[int, int] | None) -> str:
    return "x".join(map(str, size_wh or ()))
