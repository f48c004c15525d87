"""After training: finished weights read as a stream, merged and edited. Importing it loads neither torch nor safetensors."""
