"""A sweep's page as a report in Weights & Biases (the optional extra ``reports``)."""

from __future__ import annotations

from codetr.errors import UserError
from tools.sweeps.report import Page, as_markdown

PANELS = ("val/AP", "loss", "perf/images_per_second", "perf/peak_memory_gib")


def push_report(page: Page, name: str, project: str, entity: str = "") -> str:
    """Create the report of the sweep ``name`` (part of its runs' names) and return its address.

    Table and facts are those of the page; W&B draws the curves from the runs that it has: offline
    ones have to be uploaded first (``wandb sync``). ``entity`` is a user or a team, empty: the
    key's own. Raises UserError where the package is missing or W&B refuses.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise UserError(
            "pushing a report needs wandb-workspaces: install codetr[reports]"
        ) from error
    own = {"project": project, **({"entity": entity} if entity else {})}
    text = as_markdown(Page(title=page.title, facts=page.facts, table=page.table, figures=()))
    panels = [wr.LinePlot(x="Step", y=[metric]) for metric in PANELS]
    try:
        report = wr.Report(
            **own,
            title=page.title,
            blocks=[
                wr.MarkdownBlock(text=text),
                wr.PanelGrid(runsets=[wr.Runset(**own, name=name, query=name)], panels=panels),
            ],
        )
        report.save()
    except Exception as error:  # whatever W&B and the network raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"W&B took no report ({reason}): the files of the page are there"
        ) from error
    return str(report.url)
