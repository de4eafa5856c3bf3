"""Networks of nnU-Net's plans, whole and in parts."""
