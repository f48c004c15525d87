"""Who counts how much: balancers turn task losses, their history or task gradients into weights of tasks.

``config`` says what a recipe may ask for (no heavy imports); ``balancers`` makes it.
"""
