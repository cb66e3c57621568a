"""Look at a data set: see conf/inspect_data.yaml.

``python scripts/inspect_data.py data=custom data.root=FOLDER``
"""

from codetr.commands.inspect_data import main

if __name__ == "__main__":
    main()
