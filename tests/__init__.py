"""A package, because some packages on the index install one of this name, too."""
