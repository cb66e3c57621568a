"""Look into trained models: ``python scripts/analyse.py analysis=NAME checkpoint=[A,B]``.

See conf/analyse.yaml and docs/analyses.md.
"""

from codetr.commands.analyse import main

if __name__ == "__main__":
    main()
