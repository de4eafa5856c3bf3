"""Methods: what one training step computes, one file each."""
