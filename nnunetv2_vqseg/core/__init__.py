"""What every room uses: errors, files, folders and pools, without torch or nnU-Net."""
