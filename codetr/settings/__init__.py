"""Validation of composed configurations."""

from codetr.settings.check import check_settings, names_as_text

__all__ = ["check_settings", "names_as_text"]
