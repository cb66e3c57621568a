"""What one scheme or one criterion finds by itself."""

from collections.abc import Mapping, Sequence

from codetr.loss_terms import Count, Losses
from codetr.structures import Assignment, Batch, Decoded, Predictions, Targets
from codetr.supervision.criteria import SetCriterion, Supervised, measure
from codetr.supervision.schemes import Scheme, scored


def score(scheme: Scheme, decoded: Mapping[str, Decoded], batch: Batch) -> Losses:
    """The losses of a scheme that is scored alone."""
    return scored({"alone": scheme.score(decoded, batch)})["alone"]


def losses_of(
    criterion: SetCriterion,
    predictions: Predictions,
    targets: Sequence[Targets],
    assignment: Assignment,
    num_boxes: Count,
    background: float = 1.0,
) -> Losses:
    """The losses of one layer."""
    group = Supervised(
        criterion=criterion,
        layers=[predictions],
        targets=targets,
        assignments=[assignment],
        num_boxes=num_boxes,
        background=background,
    )
    ((losses,),) = measure([group])
    return losses
