"""Which image next: pure functions from what is known of the images to one of them."""
