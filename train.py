"""Train a detector: ``python train.py [group=option ...] [key=value ...]``; see conf/train.yaml."""

from codetr.commands.train import main

if __name__ == "__main__":
    main()
