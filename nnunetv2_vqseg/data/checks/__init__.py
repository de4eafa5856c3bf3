"""What nnU-Net lacks: input is refused by name, with what to do about it, before anything relies on it."""
