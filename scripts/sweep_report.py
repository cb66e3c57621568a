"""Write a sweep's page from the files of its runs: ``python scripts/sweep_report.py DIR``.

DIR is a sweep's folder (runs/sweeps/NAME) or any folder of runs; no network is needed. It gets
report.md with its plots, report.html, which is one file, and report.json.
"""

from codetr.commands.sweep_report import main

if __name__ == "__main__":
    main()
