"""Planning with the unlabelled cases."""
