"""What models would cost on several machines: steps that were measured on one, run again by a simulation of many."""
