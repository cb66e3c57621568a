"""The interface of training schemes, and the check that they fit a detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from codetr.errors import UserError
from codetr.loss_terms import Losses
from codetr.models.detectors.protocol import Detector
from codetr.models.transformers import QueryForm, QueryTable
from codetr.structures import Batch, Decoded, Memory, Queries, QueryGroup
from codetr.supervision.schemes.scoring import Score


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a scheme starts from: the ``memory`` of a batch, the ``main`` queries, and ``own``,
    the queries of the scheme's own tables, one group each.
    """

    detector: Detector
    memory: Memory
    main: Queries
    own: tuple[Queries, ...]
    batch: Batch


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a scheme adds before decoding: query groups, and losses known by then. ``idle`` are the
    modules that no loss of this batch reaches: their parameters get gradients of zero. ``after``
    gives losses that need what was decoded *and* what the scheme started from, such as the memory.
    """

    groups: tuple[QueryGroup, ...] = ()
    losses: Losses = field(default_factory=dict)
    idle: tuple[nn.Module, ...] = ()
    after: Callable[[Mapping[str, Decoded]], Losses] | None = None


class Scheme(nn.Module, ABC):
    """A training scheme, with no hidden state between the two calls.

    ``tables`` are the learned rows of its own query groups, which the detector makes queries of
    together with the main ones. ``adds_groups`` says whether it adds query groups, which not
    every detector can decode; ``form`` is that of queries that it makes itself, if any; ``taps``
    are those into the decoder that it reads, by name, and how many there must be; ``trains_masks``
    says whether it trains the detector's mask branch. A module in it that reads class logits has an
    attribute ``reads``, the kind of ``codetr.classification`` that it requires. The names of losses
    are the same for every batch, with and without boxes, since processes reduce their counts
    together.
    """

    tables: Sequence[QueryTable]
    adds_groups: bool = False
    form: QueryForm | None = None
    taps: Mapping[str, int]
    trains_masks: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.tables = ()
        self.taps = {}

    def propose(self, start: Start) -> Proposal:
        """Before decoding: further query groups, and losses on the encoder's output. Here: none."""
        return Proposal()

    @abstractmethod
    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score | Losses:
        """After decoding: assign targets to the decoded groups and measure them. A generator that
        asks for ``matched`` and ``measured`` shares both with other schemes; a scheme that needs
        neither returns its losses.
        """


def require_fit(detector: Detector, schemes: Mapping[str, Scheme]) -> None:
    """Raises UserError, with the name of the scheme, where a scheme cannot train ``detector``:
    before the first step, which would fail.
    """
    adding = [name for name, scheme in schemes.items() if scheme.adds_groups]
    if adding and not detector.groups:
        raise UserError(
            f"this detector decodes its main queries only, but scheme=[{','.join(adding)}] adds "
            "further ones: choose other schemes, or another model"
        )
    for name, scheme in schemes.items():
        if scheme.form is not None:
            _require_form(detector.form, name, scheme.form)
        for table in scheme.tables:
            _require_rows(detector.form, name, table)
        _require_logits(detector, name, scheme)
        _require_taps(detector, name, scheme)
        if scheme.trains_masks and getattr(detector, "mask_branch", None) is None:
            raise UserError(
                f"scheme=[{name}] trains a mask branch, but this model has none: choose "
                "masks=refine, which sets both"
            )


def _require_form(main: QueryForm, name: str, own: QueryForm) -> None:
    """Raise UserError where queries of form ``own`` cannot be decoded beside the main ones."""
    if own.boxes not in (None, main.boxes):
        theirs, ours = ("boxes" if form.boxes else "points" for form in (own, main))
        raise UserError(
            f"scheme=[{name}] adds queries that start at {theirs}, but this model's start at "
            f"{ours}: choose another scheme, or another model"
        )
    if main.position and not own.position:
        raise UserError(
            f"scheme=[{name}] adds queries without a position, but this model's decoder takes "
            "positions from its queries: choose another scheme, or another model"
        )


def _require_rows(main: QueryForm, name: str, table: QueryTable) -> None:
    """Raise UserError where a table lacks what makes a query of this model."""
    lacking = [row for row in main.rows if getattr(table, row) is None]
    if lacking:
        settings = " and ".join(f"supervision.per_query.{row}=true" for row in lacking)
        raise UserError(
            f"scheme=[{name}] adds queries, for which this model learns {' and '.join(main.rows)}: "
            f"set {settings}"
        )


def _require_logits(detector: Detector, name: str, scheme: Scheme) -> None:
    """Raise UserError where a matcher or loss is not made for what the logits mean."""
    for part in scheme.modules():
        reads = getattr(part, "reads", None)
        if reads is not None and not isinstance(detector.classification, reads):
            raise UserError(
                f"scheme=[{name}] has a {type(part).__name__} for {reads.__name__.lower()} logits, "
                f"but this model's are {detector.classification}: choose another scheme, a "
                "supervision= for this model's logits, or another model"
            )


def _require_taps(detector: Detector, name: str, scheme: Scheme) -> None:
    """Raise UserError where a decoder lacks what the scheme reads of its layers."""
    for tap, count in scheme.taps.items():
        found = detector.taps.get(tap, 0)
        if not found:
            raise UserError(
                f"scheme=[{name}] reads the output of {tap.replace('_', '-')} in the decoder's "
                "layers, but this model has none: choose another scheme, or another model"
            )
        if found != count:
            raise UserError(
                f"scheme=[{name}] is made for {count} decoder layers, but there are {found}: set "
                f"scheme.{name}.num_layers={found}"
            )
