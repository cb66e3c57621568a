"""List published weights, or fetch some: see conf/zoo.yaml.

``python scripts/zoo.py [checkpoint=zoo:NAME]``
"""

from codetr.commands.zoo import main

if __name__ == "__main__":
    main()
