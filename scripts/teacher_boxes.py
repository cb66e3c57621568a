"""Write a detector's boxes on a data set, to teach another: see conf/teacher_boxes.yaml.

``python scripts/teacher_boxes.py checkpoint=runs/NAME/best.ckpt data=coco data.root=FOLDER``
"""

from codetr.commands.teacher_boxes import main

if __name__ == "__main__":
    main()
