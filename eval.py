"""Evaluate a checkpoint: ``python eval.py checkpoint=runs/NAME/best.ckpt``; see conf/eval.yaml."""

from codetr.commands.evaluate import main

if __name__ == "__main__":
    main()
