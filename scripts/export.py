"""Write a detector as a torch.export (.pt2) or ONNX file, and check it: see conf/export.yaml.

``python scripts/export.py checkpoint=runs/NAME/best.ckpt format=onnx out=model.onnx``
"""

from codetr.commands.export import main

if __name__ == "__main__":
    main()
