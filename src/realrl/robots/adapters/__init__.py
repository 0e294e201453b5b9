"""Other people's robots and input devices behind our interfaces; their libraries are imported by whoever builds them."""
