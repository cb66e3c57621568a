"""Write a detector as a torch.export (.pt2) or ONNX file, and check it: see conf/export.yaml.

``python scripts/export.py checkpoint=runs/NAME/best.ckpt format=onnx out=model.onnx``
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from codetr.conf_folder import conf_folder
from codetr.training.launcher import register
from codetr.training.shell import one_line_errors


@hydra.main(config_path=str(conf_folder()), config_name="export", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    """Export, run the file, and print the differences."""
    with one_line_errors():
        from codetr.inference.command import OF_EXPORT, open_chosen, require_used  # after --help
        from codetr.inference.export import export
        from codetr.inference.export_check import as_cases
        from codetr.settings import check_settings

        given = HydraConfig.get().overrides.task
        check_settings(cfg, given, nulls=True)
        require_used(given, OF_EXPORT, cfg.checkpoint)
        done = export(
            open_chosen(cfg),
            cfg.checkpoint,
            cfg.out,
            cfg.format,
            cases=as_cases(cfg.cases),
            top_k=cfg.top_k,
            fixed=cfg.fixed,
            trust=cfg.trust,
        )
        print(f"wrote {done.path}")


def main() -> None:
    """Compose from the command line, and run."""
    register()
    _run()
