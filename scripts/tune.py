"""Find a learning rate or a batch size: ``python scripts/tune.py tune=lr [train.py's overrides]``.

See conf/tune.yaml and docs/training.md.
"""

from codetr.commands.tune import main

if __name__ == "__main__":
    main()
