"""Find objects in images or a video: see conf/predict.yaml.

``python scripts/predict.py checkpoint=runs/NAME/best.ckpt source=FOLDER``
"""

from codetr.commands.predict import main

if __name__ == "__main__":
    main()
