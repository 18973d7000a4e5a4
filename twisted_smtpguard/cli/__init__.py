"""The command line: options, configuration file, help, plug-ins."""
