"""The training step in one place. Read this first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import nn

from codetr.distributed import mean_over_ranks
from codetr.loss_terms import Losses, LossTerm, divisor, prefixed
from codetr.models.detectors.protocol import MAIN, Detector
from codetr.structures import Batch, Memory, QueryGroup
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.supervision.schemes.scoring import scored


def training_losses(detector: Detector, schemes: Mapping[str, Scheme], batch: Batch) -> Losses:
    """All losses of a batch, named ``scheme/layer/name``, normalised by their counts over all
    processes. ``total_loss`` sums them.
    """
    memory = detector.encode(batch.images)
    main, proposals = _proposals(detector, schemes, memory, batch)
    groups, losses = _joined(main, proposals)
    decoded = detector.decode(memory, groups)
    scores = scored({name: scheme.score(decoded, batch) for name, scheme in schemes.items()})
    for name, own in scores.items():
        losses |= prefixed(name, own)
    for name, proposal in proposals.items():
        if proposal.after is not None:
            losses |= prefixed(name, proposal.after(decoded))
    return divided(losses)


def divided(losses: Losses) -> Losses:
    """The losses divided by their counts. Shared counts are averaged over processes in one
    reduction, so all processes must have the same terms in the same order, even without boxes.
    """
    counted = {name: term.over for name, term in losses.items() if term.over is not None}
    if not counted:
        return losses
    counts = list(dict.fromkeys(counted.values()))
    own = torch.stack([count.number.detach() for count in counts])
    shared = torch.tensor([count.shared for count in counts])
    minimum = torch.tensor([count.minimum for count in counts], dtype=own.dtype)
    shared, minimum = (t.to(own.device, non_blocking=True) for t in (shared, minimum))
    numbers = torch.where(shared, mean_over_ranks(own), own)
    divisors = dict(zip(counts, divisor(numbers.maximum(minimum)).unbind(), strict=True))
    sums = torch.stack([losses[name].sum for name in counted])
    values = sums / torch.stack([divisors[count] for count in counted.values()])
    means = zip(counted, values.unbind(), strict=True)
    return losses | {name: LossTerm(value, losses[name].weight) for name, value in means}


def propose(
    detector: Detector, schemes: Mapping[str, Scheme], memory: Memory, batch: Batch
) -> tuple[list[QueryGroup], Losses]:
    """The query groups to decode, main first, and the losses that are known before decoding."""
    return _joined(*_proposals(detector, schemes, memory, batch))


def _proposals(
    detector: Detector, schemes: Mapping[str, Scheme], memory: Memory, batch: Batch
) -> tuple[QueryGroup, dict[str, Proposal]]:
    """The main group, and the proposal of each scheme by name."""
    tables = [table for scheme in schemes.values() for table in scheme.tables]
    main, *further = detector.queries(memory, tables)
    rest = iter(further)
    proposals = {}
    for name, scheme in schemes.items():
        own = tuple(islice(rest, len(scheme.tables)))
        start = Start(detector=detector, memory=memory, main=main, own=own, batch=batch)
        proposals[name] = scheme.propose(start)
    return QueryGroup(name=MAIN, queries=main), proposals


def _joined(main: QueryGroup, proposals: Mapping[str, Proposal]) -> tuple[list[QueryGroup], Losses]:
    groups = [main]
    losses: Losses = {}
    for name, proposal in proposals.items():
        groups += proposal.groups
        losses |= prefixed(name, proposal.losses | _idle(proposal.idle))
    return groups, losses


def _idle(modules: Sequence[nn.Module]) -> Losses:
    """A zero loss on every parameter of ``modules``: DDP requires a gradient of each."""
    if not modules:
        return {}
    sums = [parameter.sum() for module in modules for parameter in module.parameters()]
    return {"idle": LossTerm(torch.stack(sums).sum() * 0.0, 1.0)}
