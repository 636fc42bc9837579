"""With what assets work: folders, source, model, the process that trains. Thin shells that return plain objects."""
