"""A randomly initialised thin copy of the embedded video model."""

import torch

from tokenprune.eval.shapes import modeling
from tokenprune.eval.shapes.video_model import build, processor


def saved_video_model(folder):
    """Save it with its processor; four decoder layers."""
    torch.manual_seed(0)
    build(modeling.build(width=24, heads=3, vision_layers=1, text_layers=4)).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
