"""After training: finished weights read as a stream, merged and edited. Importing it loads no torch."""
