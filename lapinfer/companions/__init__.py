"""Other programs' plugins, which run models in these programs' processes."""
