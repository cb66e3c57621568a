"""Export a detector to a torch.export (.pt2) or ONNX file and check it: see conf/export.yaml.

``codetr-export checkpoint=runs/NAME/best.ckpt format=onnx out=model.onnx``
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from codetr.commands.start import start


def _export(cfg: DictConfig, given: Sequence[str]) -> None:
    """Export, and print how much the outputs of the file differ."""
    from codetr.inference.command import OF_EXPORT, open_chosen, require_used  # after --help
    from codetr.inference.export import export
    from codetr.inference.export_check import as_cases
    from codetr.settings import check_settings

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
    start("export", _export)
