"""Coefficients of a merge, learned from data or searched by score. Importing it loads no torch; its modules do."""
