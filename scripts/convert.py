"""Convert an official checkpoint (Sense-X/Co-DETR, or mmdetection 3's port) to one of ours: see
conf/convert.yaml.

``python scripts/convert.py checkpoint=official:FILE experiment=NAME out=FILE.safetensors``
"""

from codetr.commands.convert import main

if __name__ == "__main__":
    main()
