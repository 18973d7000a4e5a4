"""Checks of input: arguments from applications, files from operators, text from strangers."""
