"""What more than one system uses. Nothing here knows an operation, a label or a data set."""
