"""The console commands; ``train.py``, ``eval.py`` and ``scripts/`` call the same functions."""
