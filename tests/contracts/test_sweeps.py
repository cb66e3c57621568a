"""What every file in conf/sweep owes: each of its jobs composes and builds."""

import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from tiny import CONF, OVERRIDES, backward, batch, composed, options, without_gradient
from torch import nn

from codetr.errors import UserError
from codetr.settings.check import check_settings
from codetr.training.sweeps.jobs import swept_values
from hydra_plugins.codetr_launchers import ProcessLauncher, SubmititLauncher

TINY = ("num_classes=3", "model.backbone.pretrained=false", "data.root=nowhere")
PUBLISHED = {
    "k": [0, 1, 2, 3, 6],
    "single_head": [0, 1, 1, 1, 1, 1, 1],
    "parts": [1] * 4,
    "lambda": [1] * 7,
    "convs": [1] * 6,
    "bccd": [0, 1, 2],
    "schemes": [0, 2, 0, 0, 0, 0],
    "equal_heads": [1, 2],
    "study_k": [0, 1, 2],
    "study_k_denoising": [0, 1, 2],
    "study_heads": [2, 3, 6],
    "study_equal_heads": [1, 2],
    "study_one_stage": [0, 1, 2],
    "study_parts": [1] * 4,
    "study_single_head": [0, 1, 1, 1, 1, 1, 1],
}
"""Auxiliary heads of each job of one seed, in order."""
SEEDS = {"bccd": 5, **{name: 5 for name in PUBLISHED if name.startswith("study_")}}
"""Those that say how many seeds, which are the outer loop: all settings of seed 0 come first."""
PARTS = ("parts", "study_parts")


def composed_hydra(*overrides: str) -> object:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True).hydra


def jobs(sweep: str) -> list[list[str]]:
    params = composed_hydra(f"sweep={sweep}").sweeper.params  # type: ignore[attr-defined]
    overrides = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items()])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return [list(job) for job in batch]


@pytest.mark.parametrize("sweep", options("sweep"))
def test_every_job_builds(sweep: str) -> None:
    found = []
    every = jobs(sweep)
    seeds = [int(o.removeprefix("seed=")) for job in every for o in job if o.startswith("seed=")]
    number = SEEDS.get(sweep, 1)
    assert seeds == ([n for n in range(number) for _ in PUBLISHED[sweep]] if number > 1 else [])
    for job in every[: len(every) // number]:
        cfg = composed([f"sweep={sweep}", *TINY, *job])
        parts = {name: instantiate(part) for name, part in cfg.scheme.items()}
        found.append(len(cfg.aux_heads) if "collaborative" in parts else 0)
        if "collaborative" in parts and sweep not in PARTS:
            assert len(parts["collaborative"].heads) == len(cfg.aux_heads)
    assert found == PUBLISHED[sweep], "a new sweep says here how many heads its jobs have"


@pytest.mark.parametrize("sweep", PARTS)
def test_parts_are_those_of_the_paper(sweep: str) -> None:
    parts = []
    for job in jobs(sweep)[:4]:
        part = instantiate(composed([f"sweep={sweep}", *TINY, *job]).scheme.collaborative)
        parts.append((len(part.heads) > 0 and part.lambda_2 > 0, len(part.embeddings) > 0))
    assert parts == [(False, False), (True, False), (False, True), (True, True)]


def test_schemes_start_from_equal_detectors_and_take_a_step() -> None:
    added, states = [], []
    for job in jobs("schemes"):
        cfg = composed(["sweep=schemes", *OVERRIDES, "supervision.hybrid_queries=20", *job])
        torch.manual_seed(0)
        detector = instantiate(cfg.model.detector)
        parts = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
        states.append({name: value.clone() for name, value in detector.state_dict().items()})
        added.append(list(parts)[2:])
        assert list(parts)[:2] == ["one_to_one", "denoising"]
        assert backward(detector, parts, batch((3, 2))).isfinite()
        assert without_gradient(detector, parts) == []
    assert added == [[], ["collaborative"], ["mixed"], ["hybrid"], ["group"], ["teacher"]]
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sweep", "told"),
    [("study_k", ("scheme=[one_to_one,collaborative]",)), ("study_k_denoising", ())],
)
def test_the_study_is_the_default_run_with_other_heads(sweep: str, told: tuple[str, ...]) -> None:
    """So a page that says ``make train`` at its own length says the truth."""
    for job, heads in zip(jobs(sweep)[3:6], ("[]", "[atss]", "[atss,rcnn]"), strict=True):
        assert composed([f"sweep={sweep}", *job]) == composed(
            [*told, "seed=1", f"aux_heads={heads}"]
        )


def test_the_one_stage_study_has_the_size_of_the_other() -> None:
    one, two = (composed([f"sweep={name}"]) for name in ("study_one_stage", "study_k"))
    sizes = [k for k, v in two.model.items() if isinstance(v, int)]
    assert {k: one.model[k] for k in sizes} == {k: two.model[k] for k in sizes}
    assert one.supervision.regions == two.supervision.regions
    assert one.supervision.positive_queries == two.supervision.positive_queries
    assert one.model.backbone == two.model.backbone
    assert one.model.decoder.refine is False


def test_a_head_named_twice_is_refused_and_comes_by_another_name() -> None:
    with pytest.raises(UserError, match=r"aux_heads=\[atss,atss\]: names atss twice") as caught:
        check_settings(composed([*TINY]), ["aux_heads=[atss,atss]"])
    told = ["aux_heads=[atss]", *re.findall(r"'(.*?)'", str(caught.value))]
    assert list(composed([*TINY, *told]).aux_heads) == ["atss", "atss_2"]
    check_settings(composed([*TINY, *told]), told, nulls=True)
    with pytest.raises(UserError, match=r"names one_to_one twice: name it once$"):
        check_settings(composed([*TINY]), ["scheme=[one_to_one, one_to_one]"])


def test_swept_values_tell_the_jobs_apart() -> None:
    for sweep in options("sweep"):
        values = [tuple(swept_values(job).items()) for job in jobs(sweep)]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("process", ProcessLauncher),
        ("submitit_slurm", SubmititLauncher),
        ("submitit_local", SubmititLauncher),
    ],
)
def test_launchers_compose(option: str, kind: type) -> None:
    options = dict(composed_hydra(f"hydra/launcher={option}").launcher)  # type: ignore[attr-defined]
    assert options.pop("_target_") == f"hydra_plugins.codetr_launchers.{kind.__name__}"
    assert isinstance(kind(**options), kind)
