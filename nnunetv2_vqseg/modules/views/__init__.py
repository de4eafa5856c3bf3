"""Views of unlabelled images."""
