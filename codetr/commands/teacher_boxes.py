"""Write a detector's boxes on a data set, to teach another: see conf/teacher_boxes.yaml.

``python scripts/teacher_boxes.py checkpoint=runs/NAME/best.ckpt data=coco data.root=FOLDER``
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.settings.check import OF_RECORD
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors


@hydra.main(config_path=str(conf_folder()), config_name="teacher_boxes", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    """Run over the split, and write."""
    with one_line_errors():
        from codetr.training.teacher_boxes import write_teacher_boxes  # after hydra's --help

        write_teacher_boxes(cfg, HydraConfig.get().overrides.task)


def main() -> None:
    """Compose from the command line, and run."""
    register(of_record=OF_RECORD)
    _run()
