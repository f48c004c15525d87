"""In-context evaluation (Brown et al. 2020, arXiv:2005.14165): demonstrations before the question, no training."""
