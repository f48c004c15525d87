"""What is minimised for a batch: token losses, and how tasks, examples and tokens count in them."""
