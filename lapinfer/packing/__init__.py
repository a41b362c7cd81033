"""From a checkpoint to a packed file, and packed weights as the kernels read them."""
