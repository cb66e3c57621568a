"""Convert an official checkpoint (Sense-X/Co-DETR, or mmdetection 3's port) to one of ours.

``python scripts/convert.py FILE OUT.safetensors --experiment NAME [--non-strict] [KEY=VALUE ...]``
"""

from codetr.commands.convert import main

if __name__ == "__main__":
    main()
