"""Predictors for every branch of a checkpoint: the detector and its auxiliary heads."""

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
    """Predictors by branch name: ``main`` is the detector as ``codetr.load`` returns it, the others
    are the auxiliary heads whose weights are in the file. All share one detector.

    ``source`` is the file's name in messages; see ``codetr.load`` for the options. Raises
    UserError.
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
    predictors = {MAIN: main}
    if not content.schemes:
        return predictors
    finder = main.finder
    assert isinstance(finder, DetectorFinder), "the predictor has a single view"
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
                branch_finder = BranchFinder(branch, prepare, finder.device)
                predictors[name] = Predictor(branch_finder, main.detector, main.record, main.rules)
    return predictors
