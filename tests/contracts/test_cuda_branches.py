"""Every branch that only a GPU takes, and the test that stands in for one on the CPU.

A branch is found by what it asks or calls: whether a device is "cuda", or is not "cpu"; nccl;
pinned memory; ``torch.cuda``. A new one has to be entered here, with a test or with the reason for
none.
The benchmarks (``tools/bench``) are left out: measuring GPUs is what they are for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"cuda", "nccl"}
HOSTS = {"cpu", "mps"}

COVERED = {
    "codetr/models/ops/roi_pool.py::align_rois": (
        "tests/unit/models/ops/test_roi_pool.py::test_our_gradient_is_for_the_cpu_alone"
    ),
    "codetr/suppression.py::surviving": (
        "tests/unit/test_suppression.py::test_on_cuda_it_is_chosen_once_unless_it_was_asked_for"
    ),
    "codetr/suppression.py::_fixed_point": (
        "tests/unit/test_suppression.py::test_on_cuda_it_is_chosen_once_unless_it_was_asked_for"
    ),
    "codetr/models/backbones/frozen_norm.py::FrozenBatchNorm.forward": (
        "tests/unit/models/backbones/test_frozen_norm.py"
        "::test_the_fused_form_of_devices_has_the_same_numbers"
    ),
    "codetr/data/datamodule.py::CocoDataModule.transfer_batch_to_device": (
        "tests/contracts/test_synchronisation.py"
        "::test_a_co_dino_step_waits_as_often_at_any_batch_size_but_for_one_nms_per_image"
    ),
    "codetr/evaluation/detection_metric.py::gather_by_way_of_the_device": (
        "tests/unit/evaluation/test_detection_metric.py::test_nccl_takes_tensors_of_the_device_of_its_process"
    ),
    "codetr/host_copy.py::HostCopy.__init__": (
        "tests/unit/test_host_copy.py::test_on_cuda_it_begins_at_once_and_is_waited_for_at_the_end"
    ),
    "codetr/inference/finder.py::choose_device": (
        "tests/unit/inference/test_predictor.py::test_auto_takes_a_gpu_where_there_is_one"
    ),
    "codetr/models/ops/deformable_attention.py::_kernel": (
        "tests/unit/models/ops/test_deformable_attention.py::test_a_gpu_without_triton_is_said_aloud"
    ),
    "codetr/models/ops/deformable_attention.py::_numba_obstacle": (
        "tests/unit/models/ops/test_deformable_attention.py::test_triton_where_it_cannot_run_is_an_error"
    ),
    "codetr/models/ops/deformable_attention.py::_triton_obstacle": (
        "tests/unit/models/ops/test_deformable_attention.py::test_an_old_gpu_is_told_apart"
    ),
    "codetr/models/ops/deformable_attention.py::_has_operator": (
        "tests/unit/models/ops/test_deformable_attention.py::test_an_old_gpu_is_told_apart"
    ),
    "codetr/models/ops/msda_triton.py::_launch": (
        "tests/unit/models/ops/test_msda_triton.py::test_in_the_interpreter"
    ),
    "codetr/models/ops/fused_attention.py::avoid_cudnn_attention": (
        "tests/unit/models/ops/test_fused_attention.py::test_is_off_where_processes_are_prepared"
    ),
    "codetr/tensor_struct.py::TensorStruct.pin_memory": (
        "tests/unit/test_structures.py::test_pinned_memory_is_asked_for_every_tensor"
    ),
    "codetr/training/acceleration.py::wants_channels_last": (
        "tests/unit/training/test_acceleration.py"
        "::test_channels_last_is_automatic_for_convolutions_on_cuda"
    ),
    "codetr/training/callbacks/speed.py::peak_memory_gib": (
        "tests/unit/training/test_throughput.py::test_peak_memory_is_that_of_the_gpu"
    ),
    "codetr/training/trainer.py::pick_accelerator": (
        "tests/unit/training/test_trainer.py::test_apples_gpu_is_not_used"
    ),
    "codetr/training/trainer.py::pick_precision": (
        "tests/unit/training/test_trainer.py::test_precision_is_automatic_only_on_request"
    ),
    "codetr/training/trainer.py::use_tf32": (
        "tests/unit/training/test_trainer.py::test_tf32_is_for_products_and_convolutions_alike"
    ),
    "codetr/training/tuning/batch_size.py::batch_limit": (
        "tests/unit/training/tuning/test_batch_size.py::test_a_gpu_needs_no_limit"
    ),
}
"""By place: the test that runs it with something in the place of a GPU."""

UNCOVERED = {
    "codetr/suppression.py::_milliseconds": "reads the clock of a stream: what follows takes any",
    "codetr/inference/info.py::_timed": "waits for the device before it reads the clock",
    "codetr/inference/info.py::measure": "asks the device's allocator for its peak",
    "codetr/data/datamodule.py::CocoDataModule._loading": "pinning needs CUDA's allocator",
    "codetr/models/ops/deformable_attention.py::_msda_cuda": "the kernel is registered for CUDA",
    "codetr/models/ops/deformable_attention.py::_msda_backward_cuda": "it is registered for CUDA",
    "codetr/models/ops/msda_triton.py::_level_table": "pinning needs CUDA's allocator",
    "codetr/training/train.py::prepare_device": "a setting of the CPU's memory is left alone",
    "codetr/training/module.py::seed_generators": "seeds the generators, as torch itself does",
    "codetr/training/small_machine.py::has_gpu": "chooses a recipe: what follows takes either",
    "codetr/training/sweeps/local.py::_count_gpus": "counts GPUs: what follows takes any number",
}
"""By place: why there is none."""


def places() -> Iterator[str]:
    """File and function of every branch."""
    for path in sorted((ROOT / "codetr").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if file.startswith("tools/bench/"):
            continue
        for scope in found(ast.parse(path.read_text())):
            yield f"{file}::{scope}"


def found(tree: ast.AST, scope: str = "") -> Iterator[str]:
    """Names of the functions and classes in which a branch is, as often as there are signs."""
    annotations = {
        id(n.annotation) for n in ast.walk(tree) if isinstance(n, ast.AnnAssign | ast.arg)
    }
    for node in ast.iter_child_nodes(tree):
        if id(node) in annotations:
            continue
        inside = scope
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            inside = f"{scope}.{node.name}" if scope else node.name
        if is_sign(node):
            yield inside
        yield from found(node, inside)


def is_sign(node: ast.AST) -> bool:
    """Whether it asks for a GPU, or uses one."""
    match node:
        case ast.Constant(value=str(word)):
            return word in WORDS
        case ast.Attribute(value=ast.Name(id="torch"), attr="cuda"):
            return True
        case ast.Attribute(value=ast.Attribute(attr="backends"), attr="cuda" | "cudnn"):
            return True
        case ast.Attribute(attr="is_cuda" | "pin_memory") | ast.keyword(arg="pin_memory"):
            return True
        case ast.Compare(left=ast.Attribute(attr="type"), comparators=[right]):
            return any(isinstance(n, ast.Constant) and n.value in HOSTS for n in ast.walk(right))
    return False


def test_every_branch_is_entered_once() -> None:
    assert not COVERED.keys() & UNCOVERED.keys()
    assert sorted(set(places())) == sorted({*COVERED, *UNCOVERED})


@pytest.mark.parametrize("place", COVERED)
def test_the_test_that_stands_in_exists(place: str) -> None:
    file, name = COVERED[place].split("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('def f(x):\n    return x.device.type == "cuda"', {"f"}),
        ('def f(x):\n    return x.device.type not in ("cpu", "mps")', {"f"}),
        ("class A:\n    def g(self, x):\n        return x.pin_memory()", {"A.g"}),
        ("def f():\n    empty(3, pin_memory=True)", {"f"}),
        ("def f():\n    def g():\n        torch.cuda.synchronize()", {"f.g"}),
        ("def f(x):\n    return x.is_cuda", {"f"}),
        ("torch.backends.cuda.enable_cudnn_sdp(False)", {""}),
        ('def f(x: torch.cuda.Event):\n    """On cuda."""\n    return x.type == "linear"', set()),
        ("def f():\n    seen: torch.cuda.Event | None = None", set()),
    ],
)
def test_signs_are_found_where_they_are(code: str, expected: set[str]) -> None:
    assert set(found(ast.parse(code))) == expected
