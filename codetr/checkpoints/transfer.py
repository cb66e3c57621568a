"""Loading a checkpoint's weights into a model, which may have other classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from codetr.checkpoints.class_rows import ClassMatch, class_layout, copy_class_rows, match_classes
from codetr.checkpoints.files import DETECTOR, SCHEMES, DetectorFile
from codetr.classes import ClassList
from codetr.errors import UserError, abbreviated

COUNTER = ".num_batches_tracked"
"""Suffix of batch norm's step counters, which a file may lack."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What became of a checkpoint's tensors. ``state`` is the model's complete new state, under
    ``detector.*`` and ``schemes.*``.

    ``rows``: names of tensors whose rows were copied by class; ``missing``: names of the model that
    the file lacks (they keep their initial values); ``unknown``: names of the file that the model
    lacks; ``misfits``: names whose shapes differ, with both shapes.
    """

    state: dict[str, Tensor]
    classes: ClassMatch
    rows: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    misfits: Mapping[str, str] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Tables for the terminal: classes and modules with class rows, unless the classes are the
        same, and tensors of training schemes that were not loaded.
        """
        found = [] if self.classes.identical else [self._class_table(), self._module_table()]
        return found + ([self._scheme_table()] if self._new_modules() else [])

    def _class_table(self) -> Table:
        table = Table("", "classes", "names", title="classes of the checkpoint, by name")
        for kind in ("copied", "added", "dropped"):
            names = getattr(self.classes, kind)
            shown = "new" if kind == "added" else kind
            table.add_row(shown, str(len(names)), escape(", ".join(names)))
        return table

    def _module_table(self) -> Table:
        table = Table("module", "copied", "new", "dropped", title="rows of classes, by module")
        counts = [str(len(getattr(self.classes, k))) for k in ("copied", "added", "dropped")]
        for module in dict.fromkeys(name.rpartition(".")[0] for name in self.rows):
            table.add_row(module, *counts)
        return table

    def _new_modules(self) -> dict[str, list[str]]:
        """Names of tensors of training schemes that were not loaded, by reason."""
        reasons = dict.fromkeys(self.missing, "new: not in the checkpoint") | {
            name: f"new: {shapes}" for name, shapes in self.misfits.items()
        }
        reasons |= dict.fromkeys(self.unknown, "dropped: not in the model")
        found: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            if name.startswith(SCHEMES) and not name.endswith(COUNTER):
                found.setdefault(reason, []).append(name)
        return found

    def _scheme_table(self) -> Table:
        table = Table("", "tensors", "such as", title="training schemes")
        for reason, names in self._new_modules().items():
            table.add_row(reason, str(len(names)), abbreviated(names))
        return table


def transfer(
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    classes: ClassMatch,
    objectness_layer: str | None = None,
) -> Transfer:
    """Fit a checkpoint's ``weights`` to a model's ``state``, both under ``detector.*`` and
    ``schemes.*``; see ``class_rows`` for ``objectness_layer``. Nothing is changed in place.
    """
    result, rows, misfits = dict(state), [], {}
    for name, value in weights.items():
        if name not in state:
            continue
        layout = None if classes.identical else class_layout(name, objectness_layer)
        fitted: Tensor | None
        if layout is not None:
            fitted = copy_class_rows(value, state[name], layout, classes)
        else:
            fitted = value if value.shape == state[name].shape else None
        if fitted is None:
            misfits[name] = f"{tuple(value.shape)} instead of {tuple(state[name].shape)}"
        else:
            result[name] = fitted
            if layout is not None:
                rows.append(name)
    return Transfer(
        state=result,
        classes=classes,
        rows=tuple(rows),
        missing=tuple(n for n in state if n not in weights and not n.endswith(COUNTER)),
        unknown=tuple(n for n in weights if n not in state and not n.endswith(COUNTER)),
        misfits=misfits,
    )


def load_weights(
    content: DetectorFile,
    source: str,
    detector: nn.Module,
    classes: ClassList,
    schemes: nn.ModuleDict | None = None,
) -> Transfer:
    """Load a checkpoint into ``detector``, and into the training ``schemes`` if given.

    ``detector`` was built for ``classes``. If the checkpoint has others, rows are copied by class
    name, and those of new classes keep their initial values. All tensors of the detector must be
    loaded; tensors of schemes that do not fit keep their initial values and are reported.
    ``source`` is the file's name in messages. Raises UserError.
    """
    model = nn.ModuleDict({"detector": detector})
    weights = content.state
    if schemes is None:
        weights = {name: value for name, value in weights.items() if name.startswith(DETECTOR)}
    else:
        model["schemes"] = schemes
    match = match_classes(content.record.classes.names, classes.names)
    state = model.state_dict()
    done = transfer(weights, state, match, objectness_layer(detector))
    problems = _detector_problems(done)
    if problems:
        raise UserError(
            f"{source}: does not fit the model: {'; '.join(problems)}. Build the model with the "
            "configuration of the checkpoint"
        )
    model.load_state_dict(done.state)
    return done


def objectness_layer(detector: nn.Module) -> str | None:
    """Name of the class embedding that ranks encoder proposals, if these are ranked by
    objectness.
    """
    stage = getattr(getattr(detector, "query_init", None), "stage", None)
    if getattr(stage, "rank_by", None) != "objectness":
        return None
    ranking = detector.head.proposals.classify  # type: ignore[union-attr]
    return DETECTOR + next(name for name, part in detector.named_modules() if part is ranking)


def _detector_problems(done: Transfer) -> list[str]:
    """A phrase for each kind of difference between the detectors of the file and of the model."""
    kinds = {
        "missing": done.missing,
        "unknown": done.unknown,
        "other shape": [f"{name} {shapes}" for name, shapes in done.misfits.items()],
    }
    own = {
        kind: [n.removeprefix(DETECTOR) for n in names if n.startswith(DETECTOR)]
        for kind, names in kinds.items()
    }
    return [f"{len(names)} {kind} ({abbreviated(names)})" for kind, names in own.items() if names]
