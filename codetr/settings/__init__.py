"""What values settings may have: the one place where a composed configuration is validated."""

from codetr.settings.check import check_settings, names_as_text

__all__ = ["check_settings", "names_as_text"]
