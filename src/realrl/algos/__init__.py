"""Methods: one paper, one file. They never import each other."""
