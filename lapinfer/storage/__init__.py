"""What lapinfer keeps on this computer's disks: how much it is, what of it is of no more use, and how it is removed."""
