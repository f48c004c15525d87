"""What is adapted: pretrained backbones, their heads, and how packed rows are kept apart in them."""
