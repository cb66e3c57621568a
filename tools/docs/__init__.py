"""What writes the tables, figures and reference pages of ``docs/`` and the README."""
