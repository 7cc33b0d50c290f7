"""A data set through the model: what is kept on disk, worker processes, boxes and their figures, the training loop."""
