"""Write the detections of a data set as boxes of a teacher: see conf/teacher_boxes.yaml.

``codetr-teacher-boxes checkpoint=runs/NAME/best.ckpt data=coco data.root=FOLDER``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start
from codetr.settings.check import RECORD_GROUPS


def _teacher_boxes(cfg: DictConfig, given: Sequence[str]) -> None:
    """Run the detector over the split and write its boxes."""
    from codetr.training.teacher_boxes import write_teacher_boxes  # after hydra's --help

    write_teacher_boxes(cfg, given)


def main() -> None:
    """Compose from the command line, and run."""
    start("teacher_boxes", _teacher_boxes, record_groups=RECORD_GROUPS)
