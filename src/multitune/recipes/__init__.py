"""One run: a recipe is read, checked, planned and executed."""
