"""mgmae: pre-train video masked autoencoders, and find out which masking works.

Reading order: errors, grid, interfaces (the words), then the way of a clip: video, motion, masking, model, engine.
"""

__version__ = "0.1.0"
