"""What makes a cascade; all else is `common.detectron2.Detectron2Config`."""

IOUS = (0.5, 0.6, 0.7)
"From which overlap on a box counts as on an object, for each stage."
