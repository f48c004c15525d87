"""A wing of its own: scikit-learn estimators for many related tables or targets."""
