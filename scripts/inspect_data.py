"""Look at a data set: ``python scripts/inspect_data.py data=custom data.root=FOLDER``.

Takes the words of train.py that choose data. Writes one HTML page with counts, problems, plots and
pictures, and a text report beside it, which is printed too.
"""

from codetr.commands.inspect_data import main

if __name__ == "__main__":
    main()
