"""One loss a file, in plain PyTorch."""
