"""The command line: one file a command. The only package that knows typer and rich, prints, and exits."""
