"""What users call: options, and sentences where something is wrong; everything else is imported once it is needed."""
