"""Images on disk to pairs of views on the training device."""
