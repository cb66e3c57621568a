"""What a model costs: see conf/info.yaml.

``python scripts/info.py experiment=NAME`` or ``checkpoint=FILE``
"""

from codetr.commands.info import main

if __name__ == "__main__":
    main()
