"""Try a checkpoint in a browser: see conf/demo.yaml.

``python scripts/demo.py checkpoint=runs/NAME/best.ckpt``
"""

from codetr.commands.demo import main

if __name__ == "__main__":
    main()
