"""What values settings may have: the one place where a composed configuration is validated."""

from codetr.settings.check import check_settings, number_as_name

__all__ = ["check_settings", "number_as_name"]
