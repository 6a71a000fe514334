"""What the kernel says of itself."""
