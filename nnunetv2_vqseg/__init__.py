"""VQ-Seg (NeurIPS 2025) as a plug-in to nnU-Net v2: semi-supervised segmentation with `-tr nnUNetTrainerVQSeg`."""

__version__ = "0.1.0"
