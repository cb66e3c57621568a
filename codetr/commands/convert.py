"""Convert an official checkpoint (Sense-X/Co-DETR, or mmdetection 3's port) to one of ours.

``python scripts/convert.py FILE OUT.safetensors --experiment NAME [--non-strict] [KEY=VALUE ...]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from codetr.checkpoints.convert import convert_file
from codetr.checkpoints.files import write_detector_file
from codetr.training.ignored_settings import NOT_RECORDED, require_effect
from codetr.training.shell import one_line_errors


def main() -> None:
    """Convert, report every key, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help=".pth or .safetensors")
    parser.add_argument("out", type=Path, metavar="OUT", help="a .safetensors file")
    parser.add_argument("--experiment", required=True, metavar="NAME", help="of conf/experiment")
    parser.add_argument(
        "--non-strict", action="store_true", help="write what fits, whatever is left over"
    )
    parser.add_argument(
        "--weights",
        choices=("plain", "ema"),
        default="plain",
        help="of two sets: under the plain names, as the official evaluation (the moving average, "
        "in files saved at the end of an epoch), or under those that say EMA",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    options = parser.parse_intermixed_args()
    with one_line_errors():
        require_effect(options.overrides, NOT_RECORDED)
        content, report = convert_file(
            options.file, options.experiment, options.overrides, options.weights
        )
        print("\n".join(report.lines()))
        if not options.non_strict:
            report.require_complete(options.file)
        write_detector_file(options.out, content)
        print(f"wrote {options.out}: {len(content.record.classes)} classes")
