"""From a spec and packed weights to the ops of a plan: one file for each kind of layer, `model` for a whole model."""
