"""Convert an official checkpoint (Sense-X/Co-DETR or its mmdetection 3 port) to a codetr
checkpoint: see conf/convert.yaml.

``codetr-convert checkpoint=official:FILE experiment=NAME out=FILE.safetensors``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _convert(cfg: DictConfig, given: Sequence[str]) -> None:
    """Convert, report the mapping of all keys, and write the file."""
    from codetr.checkpoints.convert import convert  # after hydra has answered --help and typos
    from codetr.checkpoints.files import write_detector_file
    from codetr.settings import check_settings
    from codetr.settings.relations import MODEL_RELATIONS
    from codetr.training.ignored_settings import NOT_RECORDED, require_effect

    require_effect(given, NOT_RECORDED)
    check_settings(cfg, given, relations=MODEL_RELATIONS)  # nothing is trained
    content, report = convert(cfg, given)
    print("\n".join(report.lines()))
    if cfg.strict:
        report.require_complete(cfg.checkpoint)
    write_detector_file(cfg.out, content)
    print(f"wrote {cfg.out}: {len(content.record.classes)} classes")


def main() -> None:
    """Compose from the command line, and run."""
    start("convert", _convert, sweeps=False)
