"""`python -m nnunetv2_vqseg.train`: see `nnunetv2_vqseg.commands.train`."""

from nnunetv2_vqseg.commands.train import main

if __name__ == "__main__":
    main()
