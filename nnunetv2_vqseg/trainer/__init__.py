"""The trainer: nnU-Net's life cycle around a method."""
