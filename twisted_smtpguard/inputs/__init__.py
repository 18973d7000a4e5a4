"""The checks of input: arguments from applications, files of operators, text from strangers."""
