"""Every branch of a checkpoint, ready for use: the detector, and its auxiliary heads."""

from __future__ import annotations

from functools import partial

from torch import nn

from codetr.checkpoints.files import DetectorFile
from codetr.checkpoints.transfer import load_weights
from codetr.checkpoints.trusted import build_trusted
from codetr.inference.finder import DetectorFinder
from codetr.inference.predictor import Predictor, build_predictor
from codetr.inference.views import Views
from codetr.models.detectors.protocol import MAIN
from codetr.supervision.schemes import Collaborative
from codetr.training.branches import AuxiliaryBranch, BranchFinder, needed_tensors
from codetr.training.evaluate import batch_of_one


def branch_predictors(
    content: DetectorFile,
    source: str,
    *,
    device: str = "auto",
    trust: bool = False,
    max_megapixels: float = 180.0,
) -> dict[str, Predictor]:
    """By name: ``main`` is the detector as ``codetr.load`` has it, the others are the auxiliary
    heads of its training, as far as the file holds their weights. All share one detector.

    ``source`` names the file in messages; see ``codetr.load`` for the options. Raises UserError.
    """
    main = build_predictor(
        content,
        source,
        device=device,
        precision="32",
        batch=1,
        views=Views(),
        postprocess=None,
        trust=trust,
        max_megapixels=max_megapixels,
    )
    found = {MAIN: main}
    if not content.schemes:
        return found
    finder = main.finder
    assert isinstance(finder, DetectorFinder), "one view is looked at as it is"
    configs = content.record.part(source, "scheme")
    schemes = nn.ModuleDict({k: build_trusted(part, source, trust) for k, part in configs.items()})
    load_weights(content, source, main.detector, content.record.classes, schemes)
    schemes.to(finder.device).eval().requires_grad_(False)
    prepare = partial(batch_of_one, finder.resize, finder.collate)
    for key, scheme in schemes.items():
        if not isinstance(scheme, Collaborative):
            continue
        for name in scheme.heads:
            if needed_tensors(key, scheme, name) <= set(content.schemes):
                branch = AuxiliaryBranch(main.detector, scheme, name)
                seen = BranchFinder(branch, prepare, finder.device)
                found[name] = Predictor(seen, main.detector, main.record, main.rules)
    return found
