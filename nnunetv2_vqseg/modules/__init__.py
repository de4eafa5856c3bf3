"""Building blocks of VQ-Seg in plain PyTorch; nothing here imports nnU-Net."""
