"""What others give: arguments of applications, files of operators, text of strangers."""
