"""List published weights, or fetch some: ``python scripts/zoo.py [NAME ...]``."""

from codetr.commands.zoo import main

if __name__ == "__main__":
    main()
